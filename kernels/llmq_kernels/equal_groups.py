"""Groups whose elements are all the same, which quantizing has special cases for: counted where a weight has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmq_kernels.floats import source_bits
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS

__all__ = ["count_equal_groups", "equal_groups_reference"]


def equal_groups_reference(weight: np.ndarray, group_size: int) -> tuple[int, int]:
    """Specify `count_equal_groups` in plain NumPy.

    Examples
    --------
    >>> equal_groups_reference(np.array([[0.0, -0.0, 3.0, 3.0], [0.0, 1.0, -1.0, 1.0]], np.float32), 2)
    (1, 1)
    """
    groups = weight.astype(np.float32).reshape(-1, group_size)
    equal = (groups == groups[:, :1]).all(axis=1)
    zero = equal & (groups[:, 0] == 0)
    return int(zero.sum()), int(equal.sum() - zero.sum())


@jit
def _is_equal(bits: np.ndarray, start: Any, size: int, magnitude: int) -> bool:
    """Whether all elements of a group are its first; of zeros the signs do not count."""
    first = bits[start]
    zero = first & magnitude == 0
    for j in range(size):
        other = bits[start + np.uint64(j)]
        if (other & magnitude) if zero else (other != first):
            return False
    return True


@jit
def _count(bits: np.ndarray, size: int, magnitude: int) -> tuple[int, int]:
    """Count in uint (n,), a group after the other; nearly every one is left at its second element."""
    zeros = equal = 0
    second = np.uint64(min(1, size - 1))
    for group in range(bits.size // size):
        start = np.uint64(group) * np.uint64(size)
        if (bits[start] ^ bits[start + second]) & magnitude == 0 and _is_equal(bits, start, size, magnitude):
            equal += 1
            zeros += bits[start] & magnitude == 0
    return zeros, equal


@jit
def _count_coded(bits: np.ndarray, size: int, magnitude: int, packed: np.ndarray, width: int) -> tuple[int, int]:
    """Count in uint (rows, columns): of nearly every group, a word of its codes is all that is read.

    Codes are bit streams, uint8 (rows, bytes), and `size * width` is a multiple of 32.
    """
    zeros = equal = 0
    step = size * width // 8
    # As many codes of a word as are whole, all but the first beside the one before.
    same = np.uint32((1 << (32 // width - 1) * width) - 1)
    for row in range(bits.shape[0]):
        codes, own = packed[row], bits[row]
        for group in range(own.size // size):
            at = np.uint64(group) * np.uint64(step)
            word = np.uint32(codes[at]) | np.uint32(codes[at + np.uint64(1)]) << np.uint32(8)
            word |= np.uint32(codes[at + np.uint64(2)]) << np.uint32(16)
            word |= np.uint32(codes[at + np.uint64(3)]) << np.uint32(24)
            if (word ^ word >> np.uint32(width)) & same == 0:
                start = np.uint64(group) * np.uint64(size)
                if _is_equal(own, start, size, magnitude):
                    equal += 1
                    zeros += own[start] & magnitude == 0
    return zeros, equal


def count_equal_groups(
    weight: np.ndarray, group_size: int, packed: np.ndarray | None = None, bits: int = 8
) -> tuple[int, int]:
    """Count the groups of zeros, and those of one other number.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
        Finite.
    group_size : int
        At least 1; divides `columns`.
    packed : uint8 (rows, bytes), optional
        Codes of the weight as bit streams, which equal elements of a group must have alike: less is read with them.
    bits : int
        Of a code, 1 to 8.

    Returns
    -------
    zero, constant : int

    Raises
    ------
    TypeError, ValueError
        A weight or group size that does not fit.

    Examples
    --------
    >>> count_equal_groups(np.array([[0.0, -0.0, 3.0, 3.0]], np.float16), 2)
    (1, 1)
    >>> groups = np.repeat(np.array([[0.0, 3.0]], np.float16), 8, axis=1)
    >>> count_equal_groups(groups, 8, np.repeat(np.array([[0x88, 0xFF]], np.uint8), 4, axis=1), 4)
    (1, 1)
    """
    source, kind = source_bits("weight", weight)
    rows, columns = source.shape
    if group_size < 1 or columns % group_size:
        raise ValueError(f"group size {group_size} does not divide {columns} columns")
    magnitude = source.dtype.type(0x7FFF_FFFF if kind == SCALE_KINDS["float32"] else 0x7FFF)
    if packed is None or group_size * bits % 32:
        zeros, equal = _count(source.reshape(-1), group_size, magnitude)
    else:
        if packed.dtype != np.uint8 or packed.ndim != 2 or len(packed) != rows or 8 * packed.shape[1] < columns * bits:
            raise ValueError(f"{bits}-bit codes of {source.shape} do not fit {packed.dtype} {packed.shape}")
        zeros, equal = _count_coded(source, group_size, magnitude, packed, bits)
    return int(zeros), int(equal - zeros)
