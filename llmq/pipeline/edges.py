"""Where weights reach the edges of what their grid can hold: counted as they are written, and refused where they broke.

Scales that come out tell nearly all, and there is one for a group: a run counts without another pass over its weights,
but for a look at the first codes, or elements, of each group.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.errors import LlmqError
from llmq_kernels.equal_groups import count_equal_groups

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["EdgeCounts", "check_scales", "count_edges", "total"]

_LARGEST: Final = {2: float.fromhex("0x1.fep127"), 4: float(np.finfo(np.float32).max)}
"""Of bfloat16 and float32, by their bytes."""


@dataclass(frozen=True)
class EdgeCounts:
    """What a tensor, or several, had at the edges.

    Parameters
    ----------
    groups : int
        Of elements that share a scale.
    zero_groups, constant_groups : int
        Groups of nothing but zeros, and of nothing but one other number.
    scale_underflows : int
        Groups, not of zeros, whose scale is the least there is: 2**-24 in float16, else 2**-126, less than half of
        which becomes zero.
    scale_overflows : int
        Groups whose scale is the largest that its dtype, or the numbers that its codes stand for, can have: large
        numbers may have been clipped.
    nonfinite_values : int
        NaN and infinity in a tensor that was copied.
    """

    groups: int = 0
    zero_groups: int = 0
    constant_groups: int = 0
    scale_underflows: int = 0
    scale_overflows: int = 0
    nonfinite_values: int = 0

    def __add__(self, other: EdgeCounts) -> EdgeCounts:
        mine, theirs = asdict(self), asdict(other)
        return EdgeCounts(**{name: count + theirs[name] for name, count in mine.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the counts by name."""
        return asdict(self)


def total(counts: Iterable[EdgeCounts]) -> EdgeCounts:
    """Add up."""
    return sum(counts, EdgeCounts())


def check_scales(name: str, scale: np.ndarray) -> None:
    """Refuse to write scales, float16, bfloat16 or float32, of NaN, infinity or zero, which no method may make.

    Raises
    ------
    LlmqError
        There are some; `name` is the tensor's.
    """
    size = _magnitudes(scale)
    wrong = int(np.count_nonzero(size >= _bits_of(np.inf, scale.dtype))) + int(np.count_nonzero(size == 0))
    if wrong:
        raise LlmqError(
            "quantizing gave scales that are zero or not finite", tensor=name, found=f"{wrong} of {size.size}",
            hint="this should not happen: --ignore keeps the tensor as it is, another --method may do better",
        )  # fmt: skip


def count_edges(rows: np.ndarray, q: QuantizedTensor, *, alike: bool = False) -> EdgeCounts:
    """Count what a weight has at the edges: some `rows` of it, float16, bfloat16 or float32, and what they became.

    `alike` says that equal elements of a group have the same code, as methods without data give them: codes then tell
    which groups to look at, in a fifth of the time.
    """
    size = _magnitudes(q.scale)
    if not size.size:
        return EdgeCounts()
    zero, constant = count_equal_groups(rows, q.spec.group_size, q.packed if alike else None, q.spec.bits)
    least = _bits_of(2.0**-24 if q.scale.dtype == np.float16 else 2.0**-126, q.scale.dtype)
    return EdgeCounts(
        groups=size.size,
        zero_groups=zero,
        constant_groups=constant,
        scale_underflows=max(0, int(np.count_nonzero(size <= least)) - zero),  # groups of zeros have no less
        scale_overflows=_overflows(size, q),
    )


def _magnitudes(scale: np.ndarray) -> np.ndarray:
    """Bits of scales without their signs, which order as the magnitudes do."""
    if scale.dtype.itemsize == 2:
        return scale.view(np.uint16) & np.uint16(0x7FFF)
    return scale.view(np.uint32) & np.uint32(0x7FFF_FFFF)


def _bits_of(value: float, dtype: np.dtype[Any]) -> int:
    return int(_magnitudes(np.array([value], dtype))[0])


def _overflows(size: np.ndarray, q: QuantizedTensor) -> int:
    """Count scales that are as large as may be: of float16 its end, of others what keeps every code's number finite."""
    dtype = q.scale.dtype
    if dtype == np.float16:
        return int(np.count_nonzero(size == _bits_of(65504.0, dtype)))
    largest = _LARGEST[dtype.itemsize]
    if size.max() < _bits_of(largest / 2.0 ** (q.spec.bits + 1), dtype):
        return 0
    # As `round_single` limits them, but for its last bit of float32.
    limit = _magnitudes((np.float32(largest) / _farthest(q.spec, q.zero_point)).astype(dtype))
    return int(np.count_nonzero(size + size.dtype.type(dtype.itemsize == 4) >= limit))


def _farthest(spec: QuantSpec, zero_point: np.ndarray | None) -> np.ndarray:
    """Steps from zero to the code that is farthest from it."""
    if zero_point is None:
        return np.full(1, max(1, 2 ** (spec.bits - 1) - (spec.range == "narrow")), np.float32)
    return np.asarray(np.maximum(zero_point, 2**spec.bits - 1 - zero_point), np.float32)
