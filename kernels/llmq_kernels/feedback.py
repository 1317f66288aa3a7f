"""Codes that make up for each other's errors: GPTQ with fixed scales, and sweeps of coordinate descent.

With `e` the error of a row and `H` the second moments of its inputs, the output's mean squared error is `e H e`. With
`H = M D M'`, `M` unit lower triangular, it is `sum(D_k * (e_k + sum(e_j * M_jk for j > k))**2)`: columns are quantized
from the last one down, each to the code nearest to its weight plus what the errors before it ask for. That is GPTQ
(Frantar et al. 2022, arXiv:2210.17323) in the form of LDLQ (Chee et al. 2023, arXiv:2307.13304, section 3). A sweep
then visits every column again and takes the code that is best while all others stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.floats import source_bits, widen
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix, midpoint, row_bytes
from llmq_kernels.pack import pack
from llmq_kernels.quantize import scales_reference

if TYPE_CHECKING:
    from llmq_kernels.curvature import Curvature

__all__ = ["feedback", "feedback_reference", "sweep_reference"]

_BLOCK: Final = 128
"""Columns after which errors reach all others, in one product of matrices."""

_PANEL_ELEMENTS: Final = 4 << 20
"""Elements of the rows that are worked on at a time."""


def _nearest_reference(target: np.ndarray, scale: np.ndarray, zero: np.ndarray, levels: tuple[int, int]) -> np.ndarray:
    """Codes nearest to `target`, half to even."""
    return np.asarray(np.clip(np.rint(target / scale + zero), *levels))


def feedback_reference(
    weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, levels: tuple[int, int], factor: np.ndarray
) -> np.ndarray:
    """Specify the first pass in plain NumPy: codes (rows, columns) by position, from float64 `M`.

    `scale` and `zero` are given for every element.

    Examples
    --------
    >>> one = np.ones((1, 2))
    >>> feedback_reference(np.array([[0.3, 0.4]]), one, 0 * one, (0, 3), np.array([[1.0, 0.0], [0.9, 1.0]])).tolist()
    [[1.0, 0.0]]
    """
    codes = np.zeros(weight.shape)
    error = np.zeros(weight.shape)
    for k in reversed(range(weight.shape[1])):
        target = weight[:, k] + error @ factor[:, k]
        codes[:, k] = _nearest_reference(target, scale[:, k], zero[:, k], levels)
        error[:, k] = weight[:, k] - scale[:, k] * (codes[:, k] - zero[:, k])
    return codes


def sweep_reference(
    weight: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    levels: tuple[int, int],
    case: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Specify one sweep over the columns, last to first: codes (rows, columns); `case` is codes and `H`, by position.

    Examples
    --------
    >>> one, h = np.ones((1, 2)), np.array([[1.0, 0.9], [0.9, 1.0]])
    >>> sweep_reference(np.array([[1.3, 1.4]]), one, 0 * one, (0, 3), (np.array([[2.0, 2.0]]), h)).tolist()
    [[2.0, 1.0]]
    """
    codes, h = case[0].copy(), case[1]
    for k in reversed(range(weight.shape[1])):
        error = weight - scale * (codes - zero)
        value = scale[:, k] * (codes[:, k] - zero[:, k]) + error @ h[:, k] / h[k, k]
        codes[:, k] = _nearest_reference(value, scale[:, k], zero[:, k], levels)
    return codes


@jit
def _nearest(target: Any, scale: Any, zero: Any, levels: tuple[Any, Any]) -> Any:
    """The code nearest to `target`, half to even."""
    return min(max(np.rint(target / scale + zero), levels[0]), levels[1])


@jit(parallel=True)
def _feed_block(
    state: tuple[np.ndarray, np.ndarray, np.ndarray],
    factor: np.ndarray,
    grids: tuple[np.ndarray, np.ndarray, np.ndarray],
    levels: tuple[Any, Any],
    place: tuple[int, int],
) -> None:
    """Quantize the columns of a block, last to first.

    Parameters
    ----------
    state : (float32 (rows, columns), float32 (rows, columns), uint8 (rows, columns))
        Targets: weights plus what the errors of later blocks ask for; what those of this block ask for is added. Then
        the weights of the block, which become their errors. Then codes, which are written.
    factor : float32 (block, block)
        The block of `M`.
    grids : (int64 (columns,), float32 (rows, n_groups), float32 (rows, n_groups))
        Group of each position; scales and zero points.
    levels : (float32, float32)
        Least and largest code.
    place : (start, stop)
        Of the block.
    """
    targets, errors, codes = state
    groups, scale, zero = grids
    start, stop = place
    for row in numba.prange(targets.shape[0]):
        target, error = targets[row], errors[row]
        for k in range(stop - 1, start - 1, -1):
            s, z = scale[row, groups[k]], zero[row, groups[k]]
            code = _nearest(target[k], s, z, levels)
            off = error[k] - s * (code - z)
            codes[row, k] = np.uint8(code)
            error[k] = off
            line = factor[k - start]
            for j in range(k - start):
                target[start + j] += off * line[j]


@jit(parallel=True)
def _sweep_block(
    state: tuple[np.ndarray, np.ndarray, np.ndarray],
    square: np.ndarray,
    grids: tuple[np.ndarray, np.ndarray, np.ndarray],
    levels: tuple[Any, Any],
    place: tuple[int, int],
) -> None:
    """Choose the codes of a block's columns anew, last to first.

    Parameters
    ----------
    state : (float32 (rows, columns), float32 (rows, block), uint8 (rows, columns))
        `error @ H`, kept up to date inside the block; by how much errors change, written; and codes, updated.
    square : float32 (block, block)
        The block of `H`.
    grids, levels, place
        As in `_feed_block`.
    """
    pulls, changes, codes = state
    groups, scale, zero = grids
    start, stop = place
    for row in numba.prange(pulls.shape[0]):
        pull, change = pulls[row], changes[row]
        for k in range(stop - 1, start - 1, -1):
            s, z, before = scale[row, groups[k]], zero[row, groups[k]], np.float32(codes[row, k])
            line = square[k - start]
            code = _nearest(s * (before - z) + pull[k] / line[k - start], s, z, levels)
            moved = s * (before - code)
            change[k - start] = moved
            if code != before:
                codes[row, k] = np.uint8(code)
                for j in range(stop - start):
                    pull[start + j] += moved * line[j]


def feedback(
    weight: np.ndarray,
    grid: Grid,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    *,
    curvature: Curvature,
    sweeps: int = 3,
) -> PackedMatrix:
    """Choose the codes of a weight for given scales so that its outputs change least, and pack them.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
        Finite.
    grid : Grid
    scale : uint16 (rows, n_groups), twice as wide for float32 scales
        Bits of the scales, none of them zero.
    zero_point : uint8 (rows, n_groups) or None
        None for symmetric grids.
    curvature : Curvature
        Of the inputs, by `factorize` with the same group size.
    sweeps : int
        Sweeps of coordinate descent after the first pass.

    Returns
    -------
    PackedMatrix
        It keeps `scale` and `zero_point`, not copies.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other or the grid.
    """
    source, kind = source_bits("weight", weight)
    rows, columns = source.shape
    if curvature.matrix.shape != (columns, columns):
        raise ValueError(f"curvature must be of {columns} columns, not {curvature.matrix.shape[0]}")
    packed = np.empty((rows, row_bytes(columns, grid.bits)), np.uint8)
    matrix = PackedMatrix(packed, scale, zero_point, grid.bits, grid.group_size, columns, grid.scale_kind)
    groups, scales, zeros = curvature.order // grid.group_size, scales_reference(matrix), _zeros(matrix)
    levels = np.float32(grid.narrow), np.float32(2**grid.bits - 1)
    step = max(1, _PANEL_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        problem = _Problem(_wide(source[part], kind), curvature, (groups, scales[part], zeros[part]), levels)
        problem.first_pass()
        for _ in range(sweeps):
            problem.sweep()
        codes = np.empty_like(problem.codes)
        codes[:, curvature.order] = problem.codes
        packed[part] = pack(codes, grid.bits)
    return matrix


def _wide(source: np.ndarray, kind: int) -> np.ndarray:
    """Float32 of the bits of floats."""
    if kind == SCALE_KINDS["float32"]:
        return source.view(np.float32)
    return widen(source, next(name for name, number in SCALE_KINDS.items() if number == kind))


def _zeros(matrix: PackedMatrix) -> np.ndarray:
    shape = matrix.rows, matrix.n_groups
    if matrix.zero_point is None:
        return np.full(shape, midpoint(matrix.bits), np.float32)
    return matrix.zero_point.astype(np.float32)


class _Problem:
    """Some rows of a weight, by position, and the codes found for them so far."""

    def __init__(
        self,
        weight: np.ndarray,
        curvature: Curvature,
        grids: tuple[np.ndarray, np.ndarray, np.ndarray],
        levels: tuple[np.float32, np.float32],
    ) -> None:
        self.codes = np.empty(weight.shape, np.uint8)
        self._curvature = curvature
        self._error = np.ascontiguousarray(weight[:, curvature.order])
        self._grids = grids
        self._levels = levels
        columns = weight.shape[1]
        self._blocks = [(start, min(start + _BLOCK, columns)) for start in range(0, columns, _BLOCK)][::-1]

    def first_pass(self) -> None:
        """Quantize all columns, each making up for the errors of those before it."""
        target, matrix = self._error.copy(), self._curvature.matrix
        for start, stop in self._blocks:
            factor = np.ascontiguousarray(matrix[start:stop, start:stop])
            _feed_block((target, self._error, self.codes), factor, self._grids, self._levels, (start, stop))
            target[:, :start] += self._error[:, start:stop] @ matrix[start:stop, :start]

    def sweep(self) -> None:
        """Choose every code anew while the others stay."""
        pull = np.zeros_like(self._error)
        for start, stop in self._blocks:
            pull += self._error[:, start:stop] @ self._curvature.rows(start, stop)
        for start, stop in self._blocks:
            rows = self._curvature.rows(start, stop)
            square, change = np.ascontiguousarray(rows[:, start:stop]), np.empty((len(pull), stop - start), np.float32)
            _sweep_block((pull, change, self.codes), square, self._grids, self._levels, (start, stop))
            self._error[:, start:stop] += change
            pull[:, :start] += change @ rows[:, :start]
            pull[:, stop:] += change @ rows[:, stop:]
