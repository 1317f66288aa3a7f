"""Weights to packed codes and back, with given scales: `w = scale * (code - zero_point)`."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.floats import RUN, scale_value, source_bits, widen_run
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix, midpoint, row_bytes
from llmq_kernels.pack import pack_row, unpack_columns, unpack_reference

__all__ = [
    "codes_reference",
    "dequantize",
    "dequantize_columns",
    "dequantize_reference",
    "quantize",
    "scales_reference",
]

_MIDPOINTS: Final = np.array([midpoint(max(bits, 1)) for bits in range(9)], np.float32)
"""Zero points of symmetric grids, by bits."""


def codes_reference(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: int, narrow: bool) -> np.ndarray:
    """Specify the codes of float32 `x` in plain NumPy: divide, round half to even, shift, clamp.

    The sign grid of one bit (`zero_point` one half) has code 1 for `x / scale > 0` and code 0 for the rest, zeros of
    either sign included.

    Examples
    --------
    >>> x = np.array([-8.4, -0.5, 0.5, 1.5, 7.4, 9.0], np.float32)
    >>> codes_reference(x, np.float32(1.0), np.float32(8.0), 4, False).tolist()
    [0, 8, 8, 10, 15, 15]
    """
    ratio = np.divide(x, scale, dtype=np.float32)
    codes = np.clip(np.rint(ratio) + zero_point, float(narrow), 2.0**bits - 1)
    return np.asarray(ratio > 0 if np.all(zero_point == 0.5) else codes, np.uint8)


def scales_reference(matrix: PackedMatrix) -> np.ndarray:
    """Specify what the bits of `matrix.scale` mean in plain NumPy: float32 (rows, n_groups).

    Examples
    --------
    >>> scale = np.array([[0xBC00, 0x4200]], np.uint16)
    >>> matrix = PackedMatrix(np.zeros((1, 4), np.uint8), scale, None, 4, 4, 8, SCALE_KINDS["float16"])
    >>> scales_reference(matrix).tolist()
    [[-1.0, 3.0]]
    """
    if matrix.scale_kind == SCALE_KINDS["bfloat16"]:
        return (matrix.scale.astype(np.uint32) << 16).view(np.float32)
    half = matrix.scale_kind == SCALE_KINDS["float16"]
    return matrix.scale.view(np.float16 if half else np.float32).astype(np.float32)


def dequantize_reference(matrix: PackedMatrix) -> np.ndarray:
    """Specify `dequantize` in plain NumPy.

    Examples
    --------
    >>> packed, scale = np.array([[0x80, 0xF9, 0, 0]], np.uint8), np.array([[0.5, 2.0]], np.float32).view(np.uint16)
    >>> dequantize_reference(PackedMatrix(packed, scale, None, 4, 2, 4, SCALE_KINDS["float32"])).tolist()
    [[-4.0, 0.0, 2.0, 14.0]]
    """
    codes = unpack_reference(matrix.packed, matrix.bits, matrix.columns)
    groups = codes.reshape(matrix.rows, matrix.n_groups, matrix.group_size).astype(np.float32)
    zero = np.float32(midpoint(matrix.bits)) if matrix.zero_point is None else matrix.zero_point[:, :, None]
    with np.errstate(over="ignore"):
        weight = scales_reference(matrix)[:, :, None] * (groups - zero)
    return weight.reshape(codes.shape)


@jit
def zero_of(zero_point: np.ndarray, row: int, group: int, bits: int) -> np.float32:
    """Read a zero point as float32; an array of shape (0, 0) means symmetric."""
    if zero_point.shape[0] == 0:
        return np.float32(_MIDPOINTS[bits])
    return np.float32(zero_point[row, group])


@jit
def _encode_group(
    x: np.ndarray, scale: np.float32, zero: np.float32, lowest: np.float32, highest: np.float32, codes: np.ndarray
) -> None:
    """Round float32 (n,) to codes uint8 (n,) of `lowest` to `highest`."""
    for i in range(x.size):
        code = np.rint(x[i] / scale) + zero
        code = min(max(code, lowest), highest)
        codes[i] = np.uint8(np.int32(code))


@jit
def _encode_signs(x: np.ndarray, scale: np.float32, codes: np.ndarray) -> None:
    """Codes of the sign grid: float32 (n,) to uint8 (n,)."""
    for i in range(x.size):
        codes[i] = np.uint8(x[i] / scale > np.float32(0.0))


@jit
def _encode_run(
    x: np.ndarray,
    place: tuple[int, int],
    form: tuple[int, int, int, int],
    scales: tuple[np.ndarray, np.ndarray],
    codes: np.ndarray,
) -> None:
    """Round float32 (n,), the columns from `start` on of `row`, to codes uint8 (n,); `place` is (row, start)."""
    row, start = place
    bits, group_size, kind, narrow = form
    scale, zero_point = scales
    lowest, highest = np.float32(narrow), np.float32((1 << bits) - 1)
    done = 0
    while done < x.size:
        group = (start + done) // group_size
        stop = min((group + 1) * group_size - start, x.size)
        s = scale_value(scale, row, group, kind)
        if bits == 1 and zero_point.shape[0] == 0:
            _encode_signs(x[done:stop], s, codes[done:stop])
        else:
            _encode_group(x[done:stop], s, zero_of(zero_point, row, group, bits), lowest, highest, codes[done:stop])
        done = stop


@jit(parallel=True)
def _quantize(
    weight: np.ndarray,
    source_kind: int,
    scales: tuple[np.ndarray, np.ndarray],
    form: tuple[int, int, int, int],
    packed: np.ndarray,
) -> None:
    """Quantize and pack the bits of floats (rows, columns).

    Parameters
    ----------
    weight : uint16 or uint32 (rows, columns)
    source_kind : int
        Which floats these are the bits of.
    scales : (scale, zero_point)
        As in `PackedMatrix`; zero points of shape (0, 0) mean symmetric.
    form : (bits, group_size, kind, narrow)
        `kind` is that of the scales.
    packed : uint8 (rows, row_bytes)
        The result.
    """
    bits = form[0]
    rows, columns = weight.shape
    for row in numba.prange(rows):
        x = np.empty(RUN, np.float32)
        codes = np.empty(RUN, np.uint8)
        for start in range(0, columns, RUN):  # a multiple of 8 codes fills whole bytes
            count = min(RUN, columns - start)
            widen_run(weight, source_kind, (row, start, count), x)
            _encode_run(x[:count], (row, start), form, scales, codes[:count])
            first = start // 8 * bits
            last = packed.shape[1] if start + count == columns else first + count // 8 * bits
            pack_row(codes[:count], bits, packed[row, first:last])


@jit
def dequantize_columns(
    weight: tuple[np.ndarray, np.ndarray, np.ndarray],
    form: tuple[int, int, int],
    place: tuple[int, int, int],
    codes: np.ndarray,
    out: np.ndarray,
    out_row: int,
) -> None:
    """Widen some columns of one row to float32.

    Parameters
    ----------
    weight, form
        `PackedMatrix.views` and `PackedMatrix.form`.
    place : (row, start, count)
        Columns `start` to `start + count` of `row`; `start` is a multiple of 8.
    codes : uint8 (at least count,)
        Scratch.
    out : float32 (any, at least count)
        Row `out_row` is written, from its beginning.
    """
    packed, scale, zero_point = weight
    bits, group_size, kind = form
    row, start, count = place
    unpack_columns(packed, bits, row, start, count, codes)
    done = 0
    while done < count:
        group = (start + done) // group_size
        stop = min((group + 1) * group_size - start, count)
        s = scale_value(scale, row, group, kind)
        zero = zero_of(zero_point, row, group, bits)
        base = np.uint64(done)
        for i in range(stop - done):
            j = base + np.uint64(i)
            out[out_row, j] = s * (np.float32(codes[j]) - zero)
        done = stop


@jit(parallel=True)
def _dequantize(weight: tuple[np.ndarray, np.ndarray, np.ndarray], form: tuple[int, int, int], out: np.ndarray) -> None:
    """Widen all rows to float32 (rows, columns)."""
    rows, columns = out.shape
    for row in numba.prange(rows):
        codes = np.empty(columns, np.uint8)
        dequantize_columns(weight, form, (row, 0, columns), codes, out, row)


def quantize(weight: np.ndarray, grid: Grid, scale: np.ndarray, zero_point: np.ndarray | None) -> PackedMatrix:
    """Round a weight to the grid of the given scales, and pack the codes.

    ``code = clamp(round(x / scale) + zero_point, lowest, 2**bits - 1)``, half to even, where `lowest` is 1 for narrow
    grids and else 0. The bytes are the same for any number of threads.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
        Finite.
    grid : Grid
    scale : uint16 (rows, n_groups), twice as wide for float32 scales
        Bits of the scales, none of them zero.
    zero_point : uint8 (rows, n_groups) or None
        None for symmetric grids.

    Returns
    -------
    PackedMatrix
        It keeps `scale` and `zero_point`, not copies.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other or the grid.
    """
    source, source_kind = source_bits("weight", weight)
    rows, columns = source.shape
    if (zero_point is None) != grid.symmetric:
        raise ValueError("a symmetric grid has no zero points, an asymmetric one needs them")
    packed = np.empty((rows, row_bytes(columns, grid.bits)), np.uint8)
    matrix = PackedMatrix(packed, scale, zero_point, grid.bits, grid.group_size, columns, grid.scale_kind)
    form = (grid.bits, grid.group_size, grid.scale_kind, int(grid.narrow))
    _quantize(source, source_kind, (matrix.scale_view, matrix.zero_point_view), form, packed)
    return matrix


def dequantize(matrix: PackedMatrix) -> np.ndarray:
    """Return the weight that the codes stand for: `scale * (code - zero_point)`, float32 (rows, columns)."""
    out = np.empty((matrix.rows, matrix.columns), np.float32)
    _dequantize(matrix.views, matrix.form, out)
    return out
