"""Scales of one row from the extremes of its groups, compiled; see `llmq_kernels.ranges`."""

from __future__ import annotations

import numpy as np

from llmq_kernels.extremes import extreme_bits, largest_bits
from llmq_kernels.floats import bits_of, float_value, round_scale, store_scale
from llmq_kernels.jit import jit
from llmq_kernels.widening import widen_run

__all__ = ["group_range", "range_row"]


@jit
def group_range(bits: np.ndarray, kind: int, row: int, start: int, count: int) -> tuple[np.float32, np.float32]:
    """Find the range of some columns of a row, zero included; NaN counts as beyond infinity."""
    low, high = extreme_bits(bits, row, start, count)
    return float_value(low, kind), float_value(high, kind)


@jit
def _choose_symmetric(numbers: np.ndarray, bits: int, narrow: int, kind: int) -> None:
    """Choose scales, row 2 of float32 (3, n), for largest magnitudes, row 0; a plain loop that becomes vector code."""
    steps = np.float64(1 << (bits - 1)) - (1.0 if narrow else 0.5)
    highest = np.ceil(steps)
    for i in range(numbers.shape[1]):
        numbers[2, i] = round_scale(np.float64(numbers[0, i]) / steps, kind, highest)


@jit
def _choose_asymmetric(numbers: np.ndarray, bits: int, kind: int, zero_point: np.ndarray) -> None:
    """Choose scales, row 2 of float32 (3, n), and zero points, uint8 (n,), for ranges, rows 0 and 1."""
    levels = np.float64((1 << bits) - 1)
    for i in range(numbers.shape[1]):
        low, high = numbers[0, i], numbers[1, i]
        rounded = round_scale((np.float64(high) - np.float64(low)) / levels, kind)
        zero = np.float64(min(max(np.rint(-low / rounded), np.float32(0.0)), np.float32(levels)))
        numbers[2, i] = round_scale(np.float64(rounded), kind, max(zero, levels - zero))
        zero_point[i] = np.uint8(zero)


@jit
def range_row(
    weight: np.ndarray,
    row: int,
    form: tuple[int, int, int, int, int],
    scales: tuple[np.ndarray, np.ndarray],
    scratch: tuple[np.ndarray, np.ndarray],
) -> np.uint32:
    """Choose the scales and, unless their shape is (0, 0), the zero points of one row.

    Parameters
    ----------
    weight : uint16 or uint32 (rows, columns)
        Bits of floats.
    row : int
    form : (bits, group_size, kind, narrow, source_kind)
        See `quantize_rows`.
    scales : (scale, zero_point)
        Row `row` is written.
    scratch : (like weight (2, n_groups), float32 (3, n_groups))
        Row 2 of the latter becomes the scales.

    Returns
    -------
    uint32
        Largest magnitude of the row as bits of float32: from `INFINITE` on, a value is NaN or infinite.
    """
    bits, size, kind, narrow, source_kind = form
    scale, zero_point = scales
    found, numbers = scratch
    n_groups = found.shape[1]
    symmetric = zero_point.shape[0] == 0
    if symmetric:
        for i in range(n_groups):
            found[0, i] = largest_bits(weight, row, i * size, size)
    else:
        for i in range(n_groups):
            found[0, i], found[1, i] = extreme_bits(weight, row, i * size, size)
    top = np.uint32(0)
    for end in range(1 if symmetric else 2):
        widen_run(found, source_kind, (end, 0, n_groups), numbers[end])
        for i in range(n_groups):
            top = max(top, np.uint32(bits_of(numbers[end, i]) & np.uint32(0x7FFFFFFF)))
    if symmetric:
        _choose_symmetric(numbers, bits, narrow, kind)
    else:
        _choose_asymmetric(numbers, bits, kind, zero_point[row])
    for i in range(n_groups):
        store_scale(scale, row, i, kind, numbers[2, i])
    return top
