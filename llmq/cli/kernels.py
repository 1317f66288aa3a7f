"""Before kernels run: how many threads they get, and a notice if they have to be compiled."""

from __future__ import annotations

import os
import sys
from typing import Final

from llmq.cli.settings import say, settings
from llmq.errors import UsageError

__all__ = ["prepare_kernels"]

_MOST_THREADS: Final = 1024
"""More than any machine has use for: the libraries of threads end the process where the system refuses them."""


def prepare_kernels(threads: int | None = None) -> None:
    """Set the threads of the kernels, and tell once if some are compiled.

    Parameters
    ----------
    threads : int, optional
        By default all that the machine has and its cgroups grant; more is possible before Numba is imported.

    Raises
    ------
    UsageError
        Fewer than one, more than Numba was started with, or than 1024; or `NUMBA_NUM_THREADS` is no such number.
    """
    if threads is not None and threads > (os.cpu_count() or 1) and "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    _check_count(os.environ.get("NUMBA_NUM_THREADS"), threads)
    from llmq.system.cpus import keep_to_quota
    from llmq_kernels.jit import cache_folder, on_compile, set_threads

    if threads is None:
        keep_to_quota()
    else:
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


def _check_count(variable: str | None, threads: int | None) -> None:
    """Refuse numbers of threads that Numba, which reads the variable when it is imported, would fail at."""
    expected = f"1 to {_MOST_THREADS}"
    if threads is not None and threads > _MOST_THREADS:
        raise UsageError(f"--threads: threads must be {expected}", found=threads)
    if variable and not (variable.strip().isdecimal() and 1 <= int(variable) <= _MOST_THREADS):
        raise UsageError(
            "NUMBA_NUM_THREADS is not a number of threads", expected=expected, found=repr(variable),
            hint="unset NUMBA_NUM_THREADS, or use --threads",
        )  # fmt: skip
