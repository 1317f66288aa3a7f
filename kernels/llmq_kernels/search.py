"""Scales of least squared error: for each group, a search over clippings and the sign of the scale.

Sixteen groups are searched side by side, one a lane of a tile (group_size, 16): the inner loops run over the lanes,
so that LLVM makes vectors of them, and yet each group's sum is taken in one order on every machine, four elements
at a time.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.candidates import candidates
from llmq_kernels.doors import frozen, matrix_of
from llmq_kernels.floats import bits_of, float_of, round_scale, round_single, scale_value, store_scale
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, midpoint
from llmq_kernels.quantize import zero_of
from llmq_kernels.ranges import range_scales

__all__ = ["search_reference", "search_scales"]

LANES: Final = 16

# Rows of the lanes' working memory, float32 (_ROWS, LANES). Codes count from the zero point here.
_SCALE: Final = 0  # the candidate, in units of the tile
_INVERSE: Final = 1
_LOWEST: Final = 2  # its lowest and highest code
_HIGHEST: Final = 3
_ERROR: Final = 4
_BEST_ERROR: Final = 5
_BEST_SCALE: Final = 6
_BEST_LOWEST: Final = 7
_UNIT: Final = 8  # power of two that brings the group's largest magnitude near 1
_LOW: Final = 9  # extremes of the group, in units of the tile, zero included
_HIGH: Final = 10
_TOP: Final = 11  # sums for the refit
_BOTTOM: Final = 12
_ROWS: Final = 13

_REFITS: Final = 2
_LARGEST_FLOAT: Final = np.finfo(np.float32).max


def search_reference(group: np.ndarray, grid: Grid) -> float:
    """Specify the least squared error of any candidate for one group, float64 (n,), by trying them all.

    `search_scales` does at least as well, but for the rounding of float32 sums; it refits the best, and the extremes
    of a group include zero.

    Examples
    --------
    >>> search_reference(np.array([-8.0, 7.0, 3.0]), Grid(4, 3)), search_reference(np.array([3.0, 0.0]), Grid(2, 2))
    (0.0, 0.0)
    """
    low, high, levels, least = min(0.0, group.min()), max(0.0, group.max()), 2**grid.bits - 1, np.inf
    extreme = high if high >= -low else low
    for first, second in candidates(grid).astype(np.float64):
        wanted = first * extreme if grid.symmetric else (high * second - low * first) / levels
        positive = not (grid.signed and grid.symmetric and not grid.narrow)
        scale = round_scale(abs(wanted) if positive else wanted, grid.scale_kind)
        zero = midpoint(grid.bits) if grid.symmetric else np.clip(np.rint(-low * first / scale), 0, levels)
        codes = np.clip(np.rint(group / scale) + zero, float(grid.narrow), levels)
        least = min(least, float(((group - scale * (codes - zero)) ** 2).sum()))
    return least


@jit
def _load(groups: np.ndarray, first: int, tile: np.ndarray, work: np.ndarray) -> None:
    """Copy groups from `first` on into the lanes, scaled by a power of two so that squares neither vanish nor overflow.

    Lanes and elements beyond the last are zero, which costs no grid an error.
    """
    tile[:] = np.float32(0.0)
    for lane in range(LANES):
        low = high = np.float32(0.0)
        group = first + lane
        if group < groups.shape[0]:
            for j in range(groups.shape[1]):
                low = min(low, groups[group, j])
                high = max(high, groups[group, j])
        exponent = np.int64(bits_of(max(high, -low)) >> 23)  # biased by 127
        unit = float_of(np.uint32((254 - min(max(exponent, np.int64(27)), np.int64(227))) << 23))
        work[_UNIT, lane] = unit
        work[_LOW, lane] = low * unit
        work[_HIGH, lane] = high * unit
        if group < groups.shape[0]:
            for j in range(groups.shape[1]):
                tile[j, lane] = groups[group, j] * unit


@jit
def _measure(tile: np.ndarray, work: np.ndarray) -> None:
    """Sum the squared error of each lane's candidate."""
    for lane in range(LANES):
        work[_INVERSE, lane] = np.float32(1.0) / work[_SCALE, lane]
        work[_ERROR, lane] = np.float32(0.0)
    for j in range(0, tile.shape[0] - 3, 4):
        for lane in range(LANES):
            s, inverse = work[_SCALE, lane], work[_INVERSE, lane]
            lowest, highest = work[_LOWEST, lane], work[_HIGHEST, lane]
            x = tile[j, lane]
            a = x - s * min(max(np.rint(x * inverse), lowest), highest)
            x = tile[j + 1, lane]
            b = x - s * min(max(np.rint(x * inverse), lowest), highest)
            x = tile[j + 2, lane]
            c = x - s * min(max(np.rint(x * inverse), lowest), highest)
            x = tile[j + 3, lane]
            d = x - s * min(max(np.rint(x * inverse), lowest), highest)
            work[_ERROR, lane] += (a * a + b * b) + (c * c + d * d)


@jit
def _keep(work: np.ndarray) -> None:
    """Keep each lane's candidate if it is better than the best so far; the first of equals stays.

    A scale so large that one of its codes would stand for infinity is not kept.
    """
    for lane in range(LANES):
        farthest = abs(work[_SCALE, lane]) * max(-work[_LOWEST, lane], work[_HIGHEST, lane])
        finite = farthest <= _LARGEST_FLOAT * work[_UNIT, lane]
        better = finite & (work[_ERROR, lane] < work[_BEST_ERROR, lane])
        work[_BEST_ERROR, lane] = work[_ERROR, lane] if better else work[_BEST_ERROR, lane]
        work[_BEST_SCALE, lane] = work[_SCALE, lane] if better else work[_BEST_SCALE, lane]
        work[_BEST_LOWEST, lane] = work[_LOWEST, lane] if better else work[_BEST_LOWEST, lane]


@jit
def _propose_symmetric(work: np.ndarray, factor: np.float32, signed: int, kind: int) -> None:
    """Set each lane's scale to `factor` times its signed extreme, or its magnitude if scales are positive."""
    for lane in range(LANES):
        low, high = work[_LOW, lane], work[_HIGH, lane]
        extreme = high if high >= -low else low
        wanted = factor * extreme if signed else abs(factor * extreme)
        unit = work[_UNIT, lane]
        work[_SCALE, lane] = round_single(wanted / unit, kind) * unit


@jit
def _propose_asymmetric(work: np.ndarray, ends: np.ndarray, levels: np.float32, kind: int) -> None:
    """Set each lane's scale and lowest code from its range, with the low end shrunk by `ends[0]`, the high by [1]."""
    for lane in range(LANES):
        low, high = work[_LOW, lane] * ends[0], work[_HIGH, lane] * ends[1]
        unit = work[_UNIT, lane]
        s = round_single((high - low) / levels / unit, kind) * unit
        zero = min(max(np.rint(-low / s), np.float32(0.0)), levels)
        work[_SCALE, lane] = s
        work[_LOWEST, lane] = -zero
        work[_HIGHEST, lane] = levels - zero


@jit
def _refit(tile: np.ndarray, work: np.ndarray, span: np.float32, kind: int) -> None:
    """Set each lane's scale to the least-squares one for its best codes: ``sum(x * c) / sum(c * c)``, rounded."""
    for lane in range(LANES):
        work[_LOWEST, lane] = work[_BEST_LOWEST, lane]
        work[_HIGHEST, lane] = work[_BEST_LOWEST, lane] + span
        work[_INVERSE, lane] = np.float32(1.0) / work[_BEST_SCALE, lane]
        work[_TOP, lane] = np.float32(0.0)
        work[_BOTTOM, lane] = np.float32(0.0)
    for j in range(tile.shape[0]):
        for lane in range(LANES):
            x = tile[j, lane]
            code = min(max(np.rint(x * work[_INVERSE, lane]), work[_LOWEST, lane]), work[_HIGHEST, lane])
            work[_TOP, lane] += x * code
            work[_BOTTOM, lane] += code * code
    for lane in range(LANES):
        unit = work[_UNIT, lane]
        fit = work[_TOP, lane] / max(work[_BOTTOM, lane], np.float32(1.0))
        work[_SCALE, lane] = round_single(fit / unit, kind) * unit


@jit
def _start(
    work: np.ndarray, first: int, form: tuple[int, int, int, int], scale: np.ndarray, zero_point: np.ndarray
) -> None:
    """Make the scales that are in `scale`, from the extremes of the groups, the first candidate."""
    bits, narrow, _, kind = form
    for lane in range(LANES):
        group = min(first + lane, scale.shape[0] - 1)
        zero = zero_of(zero_point, group, 0, bits)
        work[_SCALE, lane] = scale_value(scale, group, 0, kind) * work[_UNIT, lane]
        work[_LOWEST, lane] = np.float32(narrow) - zero
        work[_HIGHEST, lane] = np.float32((1 << bits) - 1) - zero
        work[_BEST_ERROR, lane] = np.float32(np.inf)


@jit(parallel=True)
def _search(
    groups: np.ndarray,
    form: tuple[int, int, int, int],
    factors: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
) -> None:
    """Better the scales and zero points of float32 (groups, group_size); `form` is (bits, narrow, signed, kind).

    `factors` is float32 (n, 2): of symmetric grids the first column counts, times the extreme; of asymmetric ones
    both, times the ends of the range. `scale` is uint16 (groups, 1 or 2), `zero_point` uint8 (groups, 1) or (0, 0).
    """
    bits, narrow, signed, kind = form
    n_groups, group_size = groups.shape
    symmetric = zero_point.shape[0] == 0
    levels = np.float32((1 << bits) - 1)
    for block in numba.prange((n_groups + LANES - 1) // LANES):
        first = block * LANES
        tile = np.empty(((group_size + 3) // 4 * 4, LANES), np.float32)
        work = np.empty((_ROWS, LANES), np.float32)
        _load(groups, first, tile, work)
        _start(work, first, form, scale, zero_point)
        _measure(tile, work)
        _keep(work)
        for i in range(factors.shape[0]):
            if symmetric:
                _propose_symmetric(work, factors[i, 0], signed, kind)
            else:
                _propose_asymmetric(work, factors[i], levels, kind)
            _measure(tile, work)
            _keep(work)
        for _ in range(_REFITS):
            _refit(tile, work, levels - np.float32(narrow), kind)
            _measure(tile, work)
            _keep(work)
        for lane in range(min(LANES, n_groups - first)):
            store_scale(scale, first + lane, 0, kind, work[_BEST_SCALE, lane] / work[_UNIT, lane])
            if not symmetric:
                zero_point[first + lane, 0] = np.uint8(-work[_BEST_LOWEST, lane])


@jit(parallel=True)
def _search_signs(groups: np.ndarray, kind: int, scale: np.ndarray) -> None:
    """Find the scales of the sign grid, uint16 (groups, 1 or 2): twice the mean magnitude of each group."""
    for group in numba.prange(groups.shape[0]):
        total = 0.0
        for j in range(groups.shape[1]):
            total += abs(np.float64(groups[group, j]))
        store_scale(scale, group, 0, kind, round_scale(2.0 * total / groups.shape[1], kind))


def search_scales(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points of least squared error among a list of clippings, those of `range_scales` first.

    Errors are those of the scales as stored, rounded to their dtype. The best candidate is then refitted to its own
    codes by least squares, and the fit kept where it is better. Where the grid is signed, symmetric and not narrow,
    candidates have either sign, so that the spare code may face the longer tail. The sign grid of one bit needs no
    search: its best magnitude is the mean. Results are the same for any number of threads and any vector width.

    Parameters
    ----------
    weight : float32 (rows, columns)
        Finite.
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
    """
    weight = matrix_of("weight", weight, np.float32)
    scale, zero_point = range_scales(weight, grid)
    groups = frozen(weight.reshape(-1, grid.group_size))
    flat = scale.reshape(len(groups), 2 if grid.scale_kind == SCALE_KINDS["float32"] else 1)
    if grid.bits == 1 and grid.symmetric:
        _search_signs(groups, grid.scale_kind, flat)
        return scale, None
    zeros = np.empty((0, 0), np.uint8) if zero_point is None else zero_point.reshape(-1, 1)
    signed = grid.signed and grid.symmetric and not grid.narrow
    form = (grid.bits, int(grid.narrow), int(signed), grid.scale_kind)
    _search(groups, form, candidates(grid), flat, zeros)
    return scale, zero_point
