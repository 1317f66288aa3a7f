"""How many threads the kernels of a run get."""

from __future__ import annotations

from llmq.errors import UsageError
from llmq.system.cpus import keep_to_quota

__all__ = ["use_threads"]


def use_threads(threads: int | None) -> None:
    """Give the kernels so many threads; None leaves them as they are, but for what cgroups do not grant.

    Raises
    ------
    UsageError
        Fewer than one, or more than Numba was started with.
    """
    if threads is None:
        keep_to_quota()
        return
    from llmq_kernels.jit import set_threads

    try:
        set_threads(threads)
    except ValueError as error:
        raise UsageError(f"--threads: {error}") from None
