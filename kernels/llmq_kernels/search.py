"""Scales of least weighted squared error: for each group, a search over clippings and the sign of the scale.

Sixteen groups are searched side by side, one a lane of a tile (see `llmq_kernels.lanes`): a table of candidate scales
is filled, all are measured, and the best is kept and refitted to its own codes.
"""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.candidates import candidates
from llmq_kernels.floats import (
    bits_of,
    float_of,
    round_scale,
    round_single,
    scale_value,
    source_bits,
    store_scale,
)
from llmq_kernels.jit import jit
from llmq_kernels.lanes import LANES, fill_tile, fit_sums, measure
from llmq_kernels.layout import Grid, midpoint
from llmq_kernels.quantize_rows import zero_of
from llmq_kernels.range_rows import group_range
from llmq_kernels.ranges import group_views, range_scales
from llmq_kernels.search_weights import (
    EVEN,
    choose_weighing,
    element_weight,
    group_spread,
    weigh_tile,
    weights_reference,
)
from llmq_kernels.widening import widen_run

__all__ = ["search_reference", "search_scales"]

# Rows of the lanes' working memory, flat float32 (_ROWS * LANES,).
_UNIT: Final = 0  # power of two that brings the group's largest magnitude near 1
_BACK: Final = 1  # its inverse
_LOW: Final = 2  # extremes of the group, in units of the tile, zero included
_HIGH: Final = 3
_EXTREME: Final = 4  # the one of larger magnitude
_ROWS: Final = 5

_TILES: Final = 8
"""Tiles that a thread takes at a time."""

_REFITS: Final = 2
_LARGEST_FLOAT: Final = np.finfo(np.float32).max


def search_reference(group: np.ndarray, grid: Grid, weights: np.ndarray | None = None) -> float:
    """Specify the least weighted squared error of any candidate for one group, float64 (n,), by trying them all.

    `search_scales` does at least as well, but for the rounding of float32 sums; it refits the best, and the extremes
    of a group include zero. `weights` are those of `weights_reference`.

    Examples
    --------
    >>> search_reference(np.array([-8.0, 7.0, 3.0]), Grid(4, 3)), search_reference(np.array([3.0, 0.0]), Grid(2, 2))
    (0.0, 0.0)
    """
    weights = weights_reference(group, grid.bits) if weights is None else weights
    low, high, levels, least = min(0.0, group.min()), max(0.0, group.max()), 2**grid.bits - 1, np.inf
    extreme = high if high >= -low else low
    for first, second in candidates(grid).astype(np.float64):
        wanted = first * extreme if grid.symmetric else (high * second - low * first) / levels
        positive = not (grid.signed and grid.symmetric and not grid.narrow)
        scale = round_scale(abs(wanted) if positive else wanted, grid.scale_kind)
        zero = midpoint(grid.bits) if grid.symmetric else np.clip(np.rint(-low * first / scale), 0, levels)
        codes = np.clip(np.rint(group / scale) + zero, float(grid.narrow), levels)
        least = min(least, float((weights * (group - scale * (codes - zero)) ** 2).sum()))
    return least


@jit
def _load(bits: np.ndarray, kind: int, first: int, x: np.ndarray, tile: np.ndarray, work: np.ndarray) -> None:
    """Copy groups from `first` on into the lanes, scaled by a power of two so that squares neither vanish nor overflow.

    Lanes beyond the last group, and rows beyond the last element, are zero, which costs no grid an error. `x` is
    scratch, float32 (LANES, group_size).
    """
    n_groups, size = bits.shape
    units = np.empty((1, LANES), np.float32)
    for lane in range(LANES):
        low = high = np.float32(0.0)
        group = first + lane
        if group < n_groups:
            widen_run(bits, kind, (group, 0, size), x[lane])
            low, high = group_range(bits, kind, group, 0, size)
        else:
            for j in range(size):
                x[lane, j] = np.float32(0.0)
        exponent = np.int64(bits_of(max(high, -low)) >> 23)  # biased by 127
        exponent = min(max(exponent, np.int64(27)), np.int64(227))
        unit = float_of(np.uint32((254 - exponent) << 23))
        units[0, lane] = work[_UNIT * LANES + lane] = unit
        work[_BACK * LANES + lane] = float_of(np.uint32(exponent << 23))
        work[_LOW * LANES + lane] = low * unit
        work[_HIGH * LANES + lane] = high * unit
        work[_EXTREME * LANES + lane] = (high if high >= -low else low) * unit
    fill_tile(x, units, tile)
    for j in range(size // 8 * 8, tile.shape[0]):
        for lane in range(LANES):
            tile[j, lane] = x[lane, j] * units[0, lane] if j < size else np.float32(0.0)


@jit
def _start(
    work: np.ndarray,
    first: int,
    form: tuple[int, int, int, int],
    scales: tuple[np.ndarray, np.ndarray],
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Make the scales that are stored, from the extremes of the groups, the first candidate."""
    bits, narrow, _, kind = form
    scale, zero_point = scales
    for lane in range(LANES):
        group = min(first + lane, scale.shape[0] - 1)
        table[0][0, lane] = scale_value(scale, group, 0, kind) * work[_UNIT * LANES + lane]
        table[1][0, lane] = np.float32(narrow) - zero_of(zero_point, group, 0, bits)


@jit
def _propose_symmetric(
    work: np.ndarray,
    factors: np.ndarray,
    signed: int,
    kind: int,
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Propose the factors times each lane's extreme, or its magnitude if scales are positive, from row 1 on."""
    for i in range(factors.shape[0]):
        factor, scales, lowest = factors[i, 0], table[0][i + 1], table[1][i + 1]
        for lane in range(LANES):
            wanted = factor * work[_EXTREME * LANES + lane]
            wanted = (wanted if signed else abs(wanted)) * work[_BACK * LANES + lane]
            scales[lane] = round_single(wanted, kind) * work[_UNIT * LANES + lane]
            lowest[lane] = table[1][0, lane]


@jit
def _propose_asymmetric(
    work: np.ndarray,
    factors: np.ndarray,
    levels: np.float32,
    kind: int,
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Propose, from row 1 on, ranges whose low end is shrunk by `factors[i, 0]`, the high end by `factors[i, 1]`."""
    for i in range(factors.shape[0]):
        shrink_low, shrink_high, scales, lowest = factors[i, 0], factors[i, 1], table[0][i + 1], table[1][i + 1]
        for lane in range(LANES):
            low, high = work[_LOW * LANES + lane] * shrink_low, work[_HIGH * LANES + lane] * shrink_high
            wanted = (high - low) / levels * work[_BACK * LANES + lane]
            s = round_single(wanted, kind) * work[_UNIT * LANES + lane]
            scales[lane] = s
            lowest[lane] = -min(max(np.rint(-low / s), np.float32(0.0)), levels)


@jit
def _choose(
    work: np.ndarray, table: tuple[np.ndarray, np.ndarray, np.ndarray], span: np.float32, best: np.ndarray
) -> None:
    """Keep each lane's best candidate in `best`, float32 (3, LANES): scale, lowest code, error; the first of equals.

    A scale so large that one of its codes would stand for infinity is not kept.
    """
    scales, lowest, errors = table
    for i in range(scales.shape[0]):
        row, row_lowest, row_errors = scales[i], lowest[i], errors[i]
        for lane in range(LANES):
            s, low, error = row[lane], row_lowest[lane], row_errors[lane]
            farthest = abs(s) * max(-low, low + span)
            better = (farthest <= _LARGEST_FLOAT * work[_UNIT * LANES + lane]) & (error < best[2, lane])
            best[0, lane] = s if better else best[0, lane]
            best[1, lane] = low if better else best[1, lane]
            best[2, lane] = error if better else best[2, lane]


@jit
def _refit(
    tile: tuple[np.ndarray, np.ndarray],
    work: np.ndarray,
    table: tuple[np.ndarray, np.ndarray, np.ndarray],
    span: np.float32,
    kind: int,
    best: np.ndarray,
) -> None:
    """Try each lane's least-squares scale for its best codes: ``sum(w * x * c) / sum(w * c * c)``, rounded.

    `tile` is the tile and its weights.
    """
    scales, lowest, errors = table[0][:1], table[1][:1], table[2][:1]
    for lane in range(LANES):
        scales[0, lane] = best[0, lane]
        lowest[0, lane] = best[1, lane]
    sums = np.empty((2, LANES), np.float32)
    fit_sums(tile[0], tile[1], scales, lowest, span, sums)
    for lane in range(LANES):
        bottom = sums[1, lane] if sums[1, lane] > np.float32(0.0) else np.float32(1.0)
        wanted = sums[0, lane] / bottom * work[_BACK * LANES + lane]
        scales[0, lane] = round_single(wanted, kind) * work[_UNIT * LANES + lane]
    measure(tile[0], tile[1], scales, lowest, span, errors)
    _choose(work, (scales, lowest, errors), span, best)


@jit
def _store(
    first: int,
    form: tuple[int, int, int, int],
    scales: tuple[np.ndarray, np.ndarray],
    work: np.ndarray,
    best: np.ndarray,
) -> None:
    """Write the best scales and zero points of the groups from `first` on."""
    scale, zero_point = scales
    for lane in range(min(LANES, scale.shape[0] - first)):
        store_scale(scale, first + lane, 0, form[3], best[0, lane] * work[_BACK * LANES + lane])
        if zero_point.shape[0] != 0:
            zero_point[first + lane, 0] = np.uint8(-best[1, lane])


@jit
def _search_part(
    groups: np.ndarray,
    form: tuple[int, int, int, int],
    source_kind: int,
    factors: np.ndarray,
    weighing: tuple[int, np.ndarray],
    scales: tuple[np.ndarray, np.ndarray],
    start: int,
) -> None:
    """Search `_TILES` tiles of groups, from `start` on; see `_search`."""
    bits, narrow, signed, kind = form
    n_groups, group_size = groups.shape
    levels = np.float32((1 << bits) - 1)
    span = levels - np.float32(narrow)
    x = np.empty((LANES, group_size), np.float32)
    tile = np.empty(((group_size + 3) // 4 * 4, LANES), np.float32)
    weights = np.ones_like(tile)
    work = np.empty(_ROWS * LANES, np.float32)
    n_candidates = factors.shape[0] + 1
    shape = (n_candidates, LANES)
    table = (np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32))
    best = np.empty((3, LANES), np.float32)
    for first in range(start, min(start + _TILES * LANES, n_groups), LANES):
        _load(groups, source_kind, first, x, tile, work)
        if weighing[0] != EVEN:
            weigh_tile(tile, (first, group_size), weighing, weights)
        _start(work, first, form, scales, table)
        if scales[1].shape[0] == 0:
            _propose_symmetric(work, factors, signed, kind, table)
        else:
            _propose_asymmetric(work, factors, levels, kind, table)
        for lane in range(LANES):
            best[2, lane] = np.float32(np.inf)
        measure(tile, weights, table[0], table[1], span, table[2])
        _choose(work, table, span, best)
        for _ in range(_REFITS):
            _refit((tile, weights), work, table, span, kind, best)
        _store(first, form, scales, work, best)


@jit(parallel=True)
def _search(
    groups: np.ndarray,
    form: tuple[int, int, int, int],
    source_kind: int,
    factors: np.ndarray,
    weighing: tuple[int, np.ndarray],
    scales: tuple[np.ndarray, np.ndarray],
) -> None:
    """Better the scales and zero points of the bits of floats (groups, group_size).

    Parameters
    ----------
    groups : uint16 or uint32 (groups, group_size)
    form : (bits, narrow, signed, kind)
    source_kind : int
    factors : float32 (n, 2)
        Of symmetric grids the first column counts, times the extreme; of asymmetric ones both, times the ends of the
        range.
    weighing : (int, float32 (columns,) or (0,))
        What errors weigh, and the energies of a row's inputs.
    scales : (uint16 (groups, 1 or 2), uint8 (groups, 1) or (0, 0))
    """
    for part in numba.prange((groups.shape[0] + _TILES * LANES - 1) // (_TILES * LANES)):
        _search_part(groups, form, source_kind, factors, weighing, scales, part * _TILES * LANES)


@jit(parallel=True)
def _search_signs(
    groups: np.ndarray, source_kind: int, kind: int, weighing: tuple[int, np.ndarray], scale: np.ndarray
) -> None:
    """Find the scales of the sign grid, uint16 (groups, 1 or 2): twice the weighted mean magnitude of each group."""
    size = groups.shape[1]
    for group in numba.prange(groups.shape[0]):
        x = np.empty(size, np.float32)
        widen_run(groups, source_kind, (group, 0, size), x)
        wide = x.astype(np.float64)  # squares of float32 may overflow
        spread = group_spread(wide)
        top = bottom = 0.0
        for j in range(size):
            weight = element_weight(wide[j], spread, weighing, group * size + j)
            top += weight * abs(wide[j])
            bottom += weight
        store_scale(scale, group, 0, kind, round_scale(2.0 * top / bottom if bottom > 0.0 else 0.0, kind))


def search_scales(
    weight: np.ndarray, grid: Grid, energy: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points of least weighted error among a list of clippings, those of `range_scales` first.

    Errors are those of the scales as stored, rounded to their dtype, squared, and weighted as `weights_reference` says
    (after the quantizers of llama.cpp). The best candidate is then refitted to its own
    codes by least squares, and the fit kept where it is better. Where the grid is signed, symmetric and not narrow,
    candidates have either sign, so that the spare code may face the longer tail. The sign grid of one bit needs no
    search: its best magnitude is the (weighted) mean. Results are the same for any number of threads and any vector
    width.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
    grid : Grid
    energy : float32 (columns,), optional
        Mean square of the inputs that each column meets.

    Returns
    -------
    scale : uint16 (rows, n_groups), twice as wide for float32 scales
        Bits of the scales.
    zero_point : uint8 (rows, n_groups) or None
        None for symmetric grids.

    Raises
    ------
    TypeError, ValueError
        A weight, grid or energies that do not fit.
    FloatingPointError
        NaN or infinity in the weight.
    """
    bits, source_kind = source_bits("weight", weight)
    weighing = choose_weighing(grid.bits, energy, bits.shape[1])
    scale, zero_point = range_scales(weight, grid)
    groups, flat, zeros = group_views(bits, grid, (scale, zero_point))
    if grid.bits == 1 and grid.symmetric:
        _search_signs(groups, source_kind, grid.scale_kind, weighing, flat)
        return scale, None
    signed = grid.signed and grid.symmetric and not grid.narrow
    form = (grid.bits, int(grid.narrow), int(signed), grid.scale_kind)
    _search(groups, form, source_kind, candidates(grid), weighing, (flat, zeros))
    return scale, zero_point
