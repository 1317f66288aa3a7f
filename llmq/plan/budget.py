"""How many rows to hold at a time, and what a run's memory peaks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["BLOCK_BYTES", "PROCESS_BYTES", "block_budget", "bytes_per_row", "rows_per_block"]

PROCESS_BYTES: Final = 190 << 20
"""Anonymous memory of the process before any row is read: interpreter, NumPy, Numba and LLVM with every kernel
of the run compiled (measured by `scripts/measure_memory.py`)."""

BLOCK_BYTES: Final = 96 << 20
"""Working memory of a row block where no budget is given."""

ROW_MULTIPLE: Final = 32
"""Blocks of this many rows concatenate in every packed layout (zero points are packed along rows)."""

_SMALLEST_BLOCK: Final = 8 << 20


def bytes_per_row(columns: int, itemsize: int, spec: QuantSpec | None) -> int:
    """Working bytes that a row of a block needs: as read, as float32, packed, and its scales."""
    if spec is None:
        return columns * itemsize
    groups = columns // spec.group_size
    return columns * itemsize + 4 * columns + columns * spec.bits // 8 + 16 * groups


def rows_per_block(rows: int, row_bytes: int, budget: int) -> int:
    """Rows that fit the budget, in multiples of 32 unless that is all of them; at least one multiple."""
    fitting = max(ROW_MULTIPLE, budget // max(1, row_bytes) // ROW_MULTIPLE * ROW_MULTIPLE)
    return min(rows, fitting)


def block_budget(max_memory: int | None) -> int:
    """Bytes left for a row block under a limit for the whole process.

    Raises
    ------
    ResourceError
        The limit leaves no room for the smallest block.
    """
    if max_memory is None:
        return BLOCK_BYTES
    budget = max_memory - PROCESS_BYTES
    if budget < _SMALLEST_BLOCK:
        least = (PROCESS_BYTES + _SMALLEST_BLOCK) >> 20
        raise ResourceError(
            "memory limit too small to work in",
            expected=f"at least {least} MiB",
            found=f"{max_memory >> 20} MiB",
            hint=f"--max-memory {least}MiB",
        )
    return min(budget, 2 * BLOCK_BYTES)
