"""Before kernels run: how many threads they get, and a notice if they have to be compiled."""

from __future__ import annotations

import os
import sys

from llmq.cli.settings import say, settings
from llmq.errors import UsageError
from llmq.system.cpus import cpu_quota

__all__ = ["prepare_kernels"]


def prepare_kernels(threads: int | None = None) -> None:
    """Set the threads of the kernels, and tell once if some are compiled.

    Parameters
    ----------
    threads : int, optional
        By default all that the machine has and its cgroups grant; more is possible before Numba is imported.

    Raises
    ------
    UsageError
        Fewer than one, or more than Numba was started with.
    """
    if threads is not None and threads > (os.cpu_count() or 1) and "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    from llmq_kernels.jit import cache_folder, on_compile, set_threads
    from llmq_kernels.jit import threads as most_threads

    quota = cpu_quota()
    if threads is None and quota is not None and "NUMBA_NUM_THREADS" not in os.environ:
        set_threads(min(quota, most_threads()))
    if threads is not None:
        try:
            set_threads(threads)
        except ValueError as error:
            raise UsageError(f"--threads: {error}") from None
    if not settings().quiet:
        told: list[str] = []

        def notice(kernel: str) -> None:
            if settings().quiet:  # another command of the same process
                return
            if not told:
                folder = cache_folder()
                where = f"kept in {folder}" if folder else "no folder to keep them in: LLMQ_CACHE_DIR names one"
                say(f"compiling kernels for this machine (once; {where})")
            elif settings().verbose:
                say(f"compiling {kernel}")
            told.append(kernel)

        on_compile(notice)
