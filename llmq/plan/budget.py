"""How many rows to hold at a time, and what a run's memory peaks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.spec import QuantSpec

__all__ = [
    "BLOCKS_READ",
    "BLOCKS_WRITTEN",
    "BLOCK_BYTES",
    "PROCESS_BYTES",
    "TENSOR_BYTES",
    "Budget",
    "Need",
    "block_budget",
]

PROCESS_BYTES: Final = 192 << 20
"""Anonymous memory of the process before any row is read: interpreter, NumPy, and Numba with LLVM compiling every
kernel of the run. A test holds a run with an empty kernel cache against the prediction made of it."""

TENSOR_BYTES: Final = 8 << 10
"""What is known of each tensor: its plan, layout, journal and checksums."""

REMOTE_BYTES: Final = 38 << 20
"""Connections to a source on another machine, and the threads that read from them."""

BLOCK_BYTES: Final = 32 << 20
"""Working memory of all blocks together where no budget is given: they should stay in the last-level cache."""

BLOCKS_READ: Final = 4
"""Buffers for blocks as read: one being read, one ready, one being quantized, one being copied."""

BLOCKS_WRITTEN: Final = 2
"""Pieces of quantized blocks that may wait to be written."""

_RESULTS: Final = BLOCKS_WRITTEN + 2
"""Quantized blocks in memory: one being made, one being written, the others waiting."""

_ASYMMETRIC_ROWS: Final = 32
"""Blocks of so many rows concatenate where zero points are packed across rows."""

_SMALLEST_BLOCK: Final = 2 << 20


@dataclass(frozen=True)
class Need:
    """Working bytes of all blocks in memory for every row that a block of some tensor has.

    Parameters
    ----------
    read : int
        Rows as read.
    made : int
        Rows as quantized, and what is made on the way.
    least : int
        Rows of the smallest block.
    rows : int
        Rows of the tensor.
    """

    read: int
    made: int
    least: int
    rows: int

    @classmethod
    def of_copy(cls, elements: int, itemsize: int) -> Need:
        """Return what a copied tensor needs; a "row" is one element."""
        return cls(BLOCKS_READ * itemsize, 0, min(1, elements), elements)

    @classmethod
    def of_weight(cls, shape: tuple[int, int], itemsize: int, spec: QuantSpec) -> Need:
        """Return what a weight needs that is quantized by `spec`, resolved."""
        rows, columns = shape
        groups = columns // spec.group_size
        made = _RESULTS * (columns * max(spec.bits, 2) // 8 + 4 + 4 * groups) + (0 if spec.symmetric else 24 * groups)
        if itemsize > 4:  # as float32
            made += 4 * columns
        return cls(BLOCKS_READ * columns * itemsize, made, 1 if spec.symmetric else min(rows, _ASYMMETRIC_ROWS), rows)


@dataclass(frozen=True)
class Budget:
    """Working memory of blocks, in bytes.

    Parameters
    ----------
    read : int
        For rows as read.
    made : int
        For what they become.
    """

    read: int
    made: int

    def rows_per_block(self, need: Need) -> int:
        """Rows of a tensor to hold at a time."""
        fit = min(self.read // need.read, self.made // need.made if need.made else need.rows)
        return max(1, min(need.rows, max(need.least, fit // max(1, need.least) * need.least)))


def process_bytes(count: int, *, remote: bool) -> int:
    """Bound on the anonymous memory of the process besides rows, for so many tensors of a source near or far."""
    return PROCESS_BYTES + remote * REMOTE_BYTES + count * TENSOR_BYTES


def block_budget(max_memory: int | None, needs: Iterable[Need], process: int = PROCESS_BYTES) -> Budget:
    """What a limit for the whole process leaves for blocks of any of the tensors.

    Parameters
    ----------
    max_memory : int or None
        Bytes; without a limit blocks take `BLOCK_BYTES`.
    needs : iterable of Need
        Of all tensors.
    process : int
        Bytes of the process besides blocks.

    Raises
    ------
    ResourceError
        The limit leaves no room for the smallest blocks: the fewest rows that can be written at a time.
    """
    needs = list(needs)
    read = max((need.least * need.read for need in needs), default=0)
    made = max((need.least * need.made for need in needs), default=0)
    most = BLOCK_BYTES if max_memory is None else max_memory - process
    least = max(read + made, _SMALLEST_BLOCK)
    if max_memory is not None and most < least:
        raise _too_small(process + least, f"{max_memory >> 20} MiB")
    spare = max(0, min(most, BLOCK_BYTES) - read - made)
    return Budget(read + 2 * spare // 3, made + spare // 3)


def _too_small(least: int, found: str) -> ResourceError:
    mebibytes = -(-least >> 20)
    return ResourceError(
        "memory limit too small", expected=f"at least {mebibytes} MiB", found=found, hint=f"--max-memory {mebibytes}MiB"
    )
