"""Rows of a weight to scales and packed codes: a worker that reads each row once, and keeps it in the first cache."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmq_kernels.floats import RUN, scale_value
from llmq_kernels.jit import jit, threads
from llmq_kernels.layout import SCALE_KINDS, Grid, midpoint
from llmq_kernels.memory import address_of, matrix_at, next_number
from llmq_kernels.packing import pack_row
from llmq_kernels.range_rows import range_row
from llmq_kernels.rounding import round_codes
from llmq_kernels.widening import widen_run
from llmq_kernels.workers import launch, worker_address

__all__ = ["quantize_rows", "run_rows", "zero_of"]

_MIDPOINTS: Final = np.array([midpoint(max(bits, 1)) for bits in range(9)], np.float32)
"""Zero points of symmetric grids, by bits."""

_FLOAT32: Final = SCALE_KINDS["float32"]
_SMALLEST: Final = np.float32(2.0**-126)
_LARGEST: Final = np.float32(2.0**126)

_ROWS: Final = 4
"""Rows that a worker takes at a time."""

# What a worker reads, by place in its array of int64. Addresses are 0 where there is nothing.
_COUNTER: Final = 0
_WEIGHT: Final = 1
_SCALE: Final = 2
_ZERO: Final = 3
_PACKED: Final = 4
_TOPS: Final = 5
_SHAPE: Final = 6  # rows, columns, columns of `scale`, of `zero_point` and of `packed`
_FORM: Final = 11  # bits, group_size, kind, narrow, source_kind


@jit
def zero_of(zero_point: np.ndarray, row: int, group: int, bits: int) -> np.float32:
    """Read a zero point as float32; an array of shape (0, 0) means symmetric."""
    if zero_point.shape[0] == 0:
        return np.float32(_MIDPOINTS[bits])
    return np.float32(zero_point[row, group])


@jit
def _read_scales(scale: np.ndarray, row: int, kind: int, numbers: np.ndarray) -> None:
    """Fill in the scales of a row, row 2 of float32 (4, n_groups)."""
    if kind == _FLOAT32:
        for i in range(numbers.shape[1]):
            numbers[2, i] = scale_value(scale, row, i, kind)
    else:
        widen_run(scale, kind, (row, 0, numbers.shape[1]), numbers[2])


@jit
def _invert_scales(numbers: np.ndarray, exact: int) -> None:
    """Fill in the inverses of scales where they are normal, row 3 of float32 (4, n_groups), or zeros if not `exact`."""
    for i in range(numbers.shape[1]):
        size = abs(numbers[2, i])
        inverse = np.float32(1.0) / numbers[2, i]
        numbers[3, i] = inverse if exact & (size >= _SMALLEST) & (size <= _LARGEST) else np.float32(0.0)


@jit
def _encode_row(
    weight: np.ndarray,
    row: int,
    form: tuple[int, int, int, int, int],
    zero_point: np.ndarray,
    packed: np.ndarray,
    scratch: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Quantize and pack one row; `scratch` is float32 (4, n_groups), float32 (RUN,) and uint8 (RUN,)."""
    bits, group_size, _, narrow, source_kind = form
    numbers, x, codes = scratch
    columns = weight.shape[1]
    signs = bits == 1 and zero_point.shape[0] == 0
    lowest, highest = np.float32(narrow), np.float32((1 << bits) - 1)
    group, end = 0, group_size  # where the group ends that comes next
    for start in range(0, columns, RUN):  # a multiple of 8 codes fills whole bytes
        count = min(RUN, columns - start)
        widen_run(weight, source_kind, (row, start, count), x)
        done = 0
        while done < count:
            stop = min(end - start, count)
            if signs:
                for i in range(done, stop):
                    codes[i] = np.uint8(x[i] / numbers[2, group] > np.float32(0.0))
            else:
                zero = zero_of(zero_point, row, group, bits)
                levels = (lowest - zero, highest - zero, np.int64(zero))
                round_codes(x, (done, stop - done), numbers[2, group], levels, numbers[3, group], codes)
            if stop == end - start:
                group, end = group + 1, end + group_size
            done = stop
        first = start // 8 * bits
        last = packed.shape[1] if start + count == columns else first + count // 8 * bits
        pack_row(codes[:count], bits, packed[row, first:last])


def quantize_rows(p: Any, number: int, width: Any) -> None:
    """Take rows as long as there are any: choose their scales, quantize and pack them, or one of the two; a worker.

    Parameters
    ----------
    p : pointer to int64
        See `run_rows`.
    number : int
        Of this worker.
    width : pointer
        Bytes of a float, by its length.
    """
    rows = p[_SHAPE]
    form = (p[_FORM], p[_FORM + 1], p[_FORM + 2], p[_FORM + 3], p[_FORM + 4])
    weight = matrix_at(p[_WEIGHT], rows, p[_SHAPE + 1], width)
    scale = matrix_at(p[_SCALE], rows, p[_SHAPE + 2], np.uint16)
    zero_point = matrix_at(p[_ZERO], rows if p[_ZERO] else 0, p[_SHAPE + 3], np.uint8)
    packed = matrix_at(p[_PACKED], rows, p[_SHAPE + 4], np.uint8)
    tops = matrix_at(p[_TOPS], rows, 1, np.uint32)
    n_groups = weight.shape[1] // form[1]
    found = np.empty((2, n_groups), weight.dtype)
    numbers = np.empty((4, n_groups), np.float32)
    x = np.empty(RUN, np.float32)
    codes = np.empty(RUN, np.uint8)
    exact = 1 if (form[2] != _FLOAT32) & (form[4] != _FLOAT32) else 0
    part = next_number(p[_COUNTER])
    while part * _ROWS < rows:
        for row in range(part * _ROWS, min(rows, (part + 1) * _ROWS)):
            if p[_TOPS]:
                tops[row, 0] = range_row(weight, row, form, (scale, zero_point), (found, numbers))
            else:
                _read_scales(scale, row, form[2], numbers)
            if p[_PACKED]:
                _invert_scales(numbers, exact)
                _encode_row(weight, row, form, zero_point, packed, (numbers, x, codes))
        part = next_number(p[_COUNTER])


def run_rows(
    source: tuple[np.ndarray, int],
    grid: Grid,
    scales: tuple[np.ndarray, np.ndarray | None],
    packed: np.ndarray | None = None,
    tops: np.ndarray | None = None,
) -> None:
    """Run `quantize_rows` on all threads; nothing is checked.

    Parameters
    ----------
    source : (bits, source_kind)
        From `source_bits`: uint16 or uint32 (rows, columns).
    grid : Grid
    scales : (scale, zero_point)
        As in `PackedMatrix`.
    packed : uint8 (rows, row_bytes), optional
        Written, if the rows are to be quantized.
    tops : uint32 (rows,), optional
        Written, as are the scales, with what `range_row` returns, if they are to be chosen.
    """
    weight, source_kind = source
    scale, zero_point = scales
    counter = np.zeros(1, np.int64)
    arrays = (counter, weight, scale, zero_point, packed, tops)
    addresses = [0 if array is None else array.ctypes.data for array in arrays]
    widths = [0 if array is None else array.shape[1] for array in (weight, scale, zero_point, packed)]
    form = (grid.bits, grid.group_size, grid.scale_kind, int(grid.narrow), source_kind)
    p = np.array([*addresses, weight.shape[0], *widths, *form], np.int64)
    launch(worker_address(quantize_rows, weight.itemsize), address_of(p), threads())
