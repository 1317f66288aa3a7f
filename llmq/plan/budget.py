"""How many rows to hold at a time, and what a run's memory peaks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["BLOCK_BYTES", "PROCESS_BYTES", "Budget", "block_budget", "bytes_per_row"]

PROCESS_BYTES: Final = 180 << 20
"""Anonymous memory of the process before any row is read: interpreter, NumPy, and Numba with LLVM compiling every
kernel of the run. A test holds a run with an empty kernel cache against the prediction made of it."""

BLOCK_BYTES: Final = 96 << 20
"""Working memory of a row block where no budget is given."""

_ASYMMETRIC_ROWS: Final = 32
"""Blocks of so many rows concatenate where zero points are packed across rows."""

_SMALLEST_BLOCK: Final = 8 << 20


def bytes_per_row(columns: int, itemsize: int, spec: QuantSpec | None) -> int:
    """Working bytes that a row of a block needs: as read, as float32, packed, and its scales."""
    if spec is None:
        return columns * itemsize
    groups = columns // spec.group_size
    return columns * itemsize + 4 * columns + columns * spec.bits // 8 + 16 * groups


@dataclass(frozen=True)
class Budget:
    """Working memory of a row block, in bytes.

    Parameters
    ----------
    preferred : int
        What a block takes where its rows allow.
    most : int or None
        What the widest rows may make it take; None without a limit.
    """

    preferred: int
    most: int | None

    def rows_per_block(self, shape: tuple[int, int], itemsize: int, spec: QuantSpec) -> int:
        """Rows of a weight to hold at a time.

        Raises
        ------
        ResourceError
            The fewest rows that can be written at a time take more than the limit.
        """
        rows, columns = shape
        per_row = bytes_per_row(columns, itemsize, spec)
        least = 1 if spec.symmetric else min(rows, _ASYMMETRIC_ROWS)
        if self.most is not None and least * per_row > self.most:
            raise _too_small(PROCESS_BYTES + least * per_row, f"{PROCESS_BYTES + self.most >> 20} MiB")
        return min(rows, max(least, self.preferred // per_row // least * least))


def block_budget(max_memory: int | None) -> Budget:
    """What a limit for the whole process leaves for a row block.

    Raises
    ------
    ResourceError
        The limit leaves no room for the smallest block.
    """
    if max_memory is None:
        return Budget(BLOCK_BYTES, None)
    most = max_memory - PROCESS_BYTES
    if most < _SMALLEST_BLOCK:
        raise _too_small(PROCESS_BYTES + _SMALLEST_BLOCK, f"{max_memory >> 20} MiB")
    return Budget(min(most, 2 * BLOCK_BYTES), most)


def _too_small(least: int, found: str) -> ResourceError:
    mebibytes = -(-least >> 20)
    return ResourceError(
        "memory limit too small", expected=f"at least {mebibytes} MiB", found=found, hint=f"--max-memory {mebibytes}MiB"
    )
