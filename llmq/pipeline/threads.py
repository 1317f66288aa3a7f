"""How many threads the kernels of a run get."""

from __future__ import annotations

from llmq.errors import UsageError

__all__ = ["use_threads"]


def use_threads(threads: int | None) -> None:
    """Give the kernels of this thread so many threads; None leaves them as they are.

    Raises
    ------
    UsageError
        Fewer than one, or more than Numba was started with.
    """
    if threads is None:
        return
    from llmq_kernels.jit import set_threads

    try:
        set_threads(threads)
    except ValueError as error:
        raise UsageError(f"--threads: {error}") from None
