"""Scales from the extremes of each group: round to nearest, and the textbook's grids."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.extremes import extreme_bits
from llmq_kernels.floats import INFINITE, bits_of, float_value, round_scale, source_bits, store_scale
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, midpoint

__all__ = ["divisor", "group_range", "new_scales", "range_reference", "range_scales"]

_CHUNK: Final = 64
"""Groups whose scales are rounded together."""


def range_reference(group: np.ndarray, bits: int, symmetric: bool, narrow: bool) -> tuple[float, float]:
    """Specify the scale, before it is rounded to its dtype, and zero point of one group in plain NumPy.

    The range of an asymmetric grid includes zero. A group of zeros has scale 0 here; rounding makes it tiny. A
    scale near the largest float32 is lowered when it is rounded, so that every code stands for a finite number.

    Examples
    --------
    >>> range_reference(np.array([-7.5, 1.0]), 4, True, False)
    (1.0, 8.0)
    >>> range_reference(np.array([-5.0, 10.0]), 4, False, False)
    (1.0, 5.0)
    """
    if symmetric:
        return float(np.abs(group).max()) / divisor(bits, narrow), midpoint(bits)
    low, high, levels = min(0.0, float(group.min())), max(0.0, float(group.max())), 2**bits - 1
    scale = (high - low) / levels
    return scale, float(np.clip(np.rint(-low / scale), 0, levels)) if scale else 0.0


def divisor(bits: int, narrow: bool) -> float:
    """Return the steps from zero to the largest magnitude of a symmetric grid: 7.5 for 4 bits, 7 if narrow."""
    return 2.0 ** (bits - 1) - (1.0 if narrow else 0.5)


def new_scales(rows: int, columns: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Allocate scales, uint16 (rows, n_groups) or twice as wide, and zero points, uint8 (rows, n_groups) or (0, 0).

    Raises
    ------
    ValueError
        A group size that does not divide `columns`, a width or kind out of range, or a narrow grid of one bit.
    """
    if not 1 <= grid.bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {grid.bits}")
    if grid.group_size < 1 or columns < 1 or columns % grid.group_size:
        raise ValueError(f"group size {grid.group_size} does not divide {columns} columns")
    if grid.scale_kind not in SCALE_KINDS.values():
        raise ValueError(f"unknown scale kind {grid.scale_kind}")
    if grid.narrow and (grid.bits == 1 or not grid.symmetric):
        raise ValueError("a narrow range needs a symmetric grid of at least 2 bits")
    n_groups = columns // grid.group_size
    words = 2 if grid.scale_kind == SCALE_KINDS["float32"] else 1
    scale = np.empty((rows, n_groups * words), np.uint16)
    return scale, np.empty((0, 0) if grid.symmetric else (rows, n_groups), np.uint8)


@jit
def group_range(bits: np.ndarray, kind: int, row: int, start: int, count: int) -> tuple[np.float32, np.float32]:
    """Find the range of some columns of a row, zero included; NaN counts as beyond infinity."""
    low, high = extreme_bits(bits, row, start, count)
    return float_value(low, kind), float_value(high, kind)


@jit
def zero_point_of(low: np.float32, scale: np.float32, levels: float) -> np.float32:
    """Find the code that stands for zero, as float32, when the lowest value is `low` and the highest code `levels`."""
    return np.float32(min(max(np.rint(-low / scale), np.float32(0.0)), np.float32(levels)))


@jit
def _choose_symmetric(ranges: np.ndarray, steps: float, kind: int, scale: np.ndarray) -> None:
    """Choose scales, float32 (n,), for ranges float32 (2, n); a plain loop, so that it becomes vector code."""
    highest = np.ceil(steps)
    for i in range(scale.size):
        scale[i] = round_scale(max(np.float64(ranges[1, i]), -np.float64(ranges[0, i])) / steps, kind, highest)


@jit
def _choose_asymmetric(ranges: np.ndarray, steps: float, kind: int, scale: np.ndarray, zero_point: np.ndarray) -> None:
    """Choose scales and zero points, float32 (n,) and uint8 (n,), for ranges float32 (2, n)."""
    for i in range(scale.size):
        low, high = ranges[0, i], ranges[1, i]
        rounded = round_scale((np.float64(high) - np.float64(low)) / steps, kind)
        zero = zero_point_of(low, rounded, steps)
        scale[i] = round_scale(np.float64(rounded), kind, max(np.float64(zero), steps - np.float64(zero)))
        zero_point[i] = np.uint8(zero)


@jit(parallel=True)
def _range_scales(
    bits: np.ndarray,
    shape: tuple[int, int],
    form: tuple[float, int],
    scale: np.ndarray,
    zero_point: np.ndarray,
    tops: np.ndarray,
) -> None:
    """Fill in scales and, unless its shape is (0, 0), zero points for the bits of floats (rows, columns).

    Parameters
    ----------
    bits : uint16 or uint32 (rows, columns)
    shape : (source_kind, group_size)
    form : (steps, kind)
        `steps` is `divisor` of a symmetric grid, and the highest code of an asymmetric one; `kind` that of the scales.
    scale, zero_point
        Written.
    tops : uint32 (rows,)
        Largest magnitude of each row as bits of float32: from `INFINITE` on, a value is NaN or infinite.
    """
    source_kind, group_size = shape
    steps, kind = form
    n_groups = bits.shape[1] // group_size
    for row in numba.prange(bits.shape[0]):
        ranges = np.empty((2, _CHUNK), np.float32)
        chosen = np.empty(_CHUNK, np.float32)
        top = np.uint32(0)
        for first in range(0, n_groups, _CHUNK):
            count = min(_CHUNK, n_groups - first)
            for i in range(count):
                low, high = group_range(bits, source_kind, row, (first + i) * group_size, group_size)
                ranges[0, i], ranges[1, i] = low, high
                top = max(top, bits_of(low) & np.uint32(0x7FFFFFFF), bits_of(high))
            if zero_point.shape[0] == 0:
                _choose_symmetric(ranges[:, :count], steps, kind, chosen[:count])
            else:
                _choose_asymmetric(
                    ranges[:, :count], steps, kind, chosen[:count], zero_point[row, first : first + count]
                )
            for i in range(count):
                store_scale(scale, row, first + i, kind, chosen[i])
        tops[row] = top


def range_scales(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points that just hold each group.

    Symmetric: ``s = max|x| / (2**(bits-1) - 1/2)``, narrow ``s = max|x| / (2**(bits-1) - 1)``. Asymmetric:
    ``s = (max - min) / (2**bits - 1)`` and ``z = -round(min / s)``, over a range that includes zero, with `s`
    already rounded to its dtype. Scales are positive, never zero (see `floats.round_scale`).

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
    grid : Grid

    Returns
    -------
    scale : uint16 (rows, n_groups), twice as wide for float32 scales
        Bits of the scales.
    zero_point : uint8 (rows, n_groups) or None
        None for symmetric grids.

    Raises
    ------
    TypeError, ValueError
        A weight or grid that does not fit.
    FloatingPointError
        NaN or infinity in the weight.
    """
    bits, source_kind = source_bits("weight", weight)
    scale, zero_point = new_scales(bits.shape[0], bits.shape[1], grid)
    steps = divisor(grid.bits, grid.narrow) if grid.symmetric else float(2**grid.bits - 1)
    tops = np.empty(bits.shape[0], np.uint32)
    _range_scales(bits, (source_kind, grid.group_size), (steps, grid.scale_kind), scale, zero_point, tops)
    if tops.size and tops.max() >= INFINITE:
        raise FloatingPointError("weight holds NaN or infinity")
    return scale, None if grid.symmetric else zero_point
