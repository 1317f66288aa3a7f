"""Weights to packed codes and back, with given scales: `w = scale * (code - zero_point)`."""

from __future__ import annotations

import numba
import numpy as np

from llmq_kernels.floats import scale_value, source_bits
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix, midpoint, row_bytes
from llmq_kernels.pack import unpack_columns, unpack_reference
from llmq_kernels.quantize_rows import run_rows, zero_of
from llmq_kernels.ranges import choose_and_pack

__all__ = [
    "codes_reference",
    "dequantize",
    "dequantize_columns",
    "dequantize_reference",
    "quantize",
    "quantize_to_range",
    "scales_reference",
]


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
    run_rows((source, source_kind), grid, (matrix.scale, matrix.zero_point), packed)
    return matrix


def quantize_to_range(weight: np.ndarray, grid: Grid) -> PackedMatrix:
    """Quantize by the scales of `range_scales`, in one pass; parameters and errors are those of the two doors."""
    rows, columns = np.shape(weight)
    packed = np.empty((rows, row_bytes(columns, grid.bits)), np.uint8)
    scale, zero_point = choose_and_pack(weight, grid, packed)
    return PackedMatrix(packed, scale, zero_point, grid.bits, grid.group_size, columns, grid.scale_kind)


def dequantize(matrix: PackedMatrix) -> np.ndarray:
    """Return the weight that the codes stand for: `scale * (code - zero_point)`, float32 (rows, columns)."""
    out = np.empty((matrix.rows, matrix.columns), np.float32)
    _dequantize(matrix.views, matrix.form, out)
    return out
