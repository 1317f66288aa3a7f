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


def count_equal_groups(weight: np.ndarray, group_size: int) -> tuple[int, int]:
    """Count the groups of zeros, and those of one other number.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
        Finite.
    group_size : int
        At least 1; divides `columns`.

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
    """
    bits, kind = source_bits("weight", weight)
    if group_size < 1 or bits.shape[1] % group_size:
        raise ValueError(f"group size {group_size} does not divide {bits.shape[1]} columns")
    magnitude = 0x7FFF_FFFF if kind == SCALE_KINDS["float32"] else 0x7FFF
    zeros, equal = _count(bits.reshape(-1), group_size, bits.dtype.type(magnitude))
    return int(zeros), int(equal - zeros)
