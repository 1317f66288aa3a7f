"""What clipping a distribution costs, found from its histogram: squared error, or the information that is lost."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit

__all__ = ["Candidates", "divergences", "divergences_reference", "squared_errors", "squared_errors_reference"]


class Candidates(NamedTuple):
    """Grids to choose from: values ``scale * (code - zero_point)`` of the codes `lowest` to `highest`.

    Parameters
    ----------
    scale : float64 (channels, n)
        Positive.
    zero_point : float64 (channels, n)
        One half for the sign grid of one bit.
    lowest, highest : int
    """

    scale: np.ndarray
    zero_point: np.ndarray
    lowest: int
    highest: int


def squared_errors_reference(counts: np.ndarray, centres: np.ndarray, grids: Candidates) -> np.ndarray:
    """Specify `squared_errors` in plain NumPy.

    Examples
    --------
    >>> grids = Candidates(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]]), 0, 3)
    >>> squared_errors_reference(np.array([[2, 1]]), np.array([[1.0, 6.0]]), grids).tolist()
    [[9.0, 2.0]]
    """
    x, scale, zero_point = centres[:, None, :], grids.scale[:, :, None], grids.zero_point[:, :, None]
    codes = np.clip(np.rint(x / scale + zero_point), grids.lowest, grids.highest)
    found: np.ndarray = (counts[:, None, :] * (x - scale * (codes - zero_point)) ** 2).sum(axis=-1)
    return found


def divergences_reference(counts: np.ndarray, centres: np.ndarray, grids: Candidates) -> np.ndarray:
    """Specify `divergences` in plain NumPy.

    A single value, and every grid that tells all kept bins apart and clips none, diverges by 0; one that clips all by
    infinity.

    Examples
    --------
    >>> grids = Candidates(np.array([[2.0, 1.0]]), np.array([[0.0, 0.0]]), 0, 1)
    >>> divergences_reference(np.array([[4, 2, 2]]), np.array([[0.0, 1.2, 2.0]]), grids).round(4).tolist()
    [[0.0, 0.0589]]
    """
    out = np.full(grids.scale.shape, np.inf)
    for channel, i in np.ndindex(out.shape):
        some = counts[channel] > 0
        n, place = (
            counts[channel][some],
            centres[channel][some] / grids.scale[channel, i] + grids.zero_point[channel, i],
        )
        kept = np.flatnonzero((place >= grids.lowest - 0.5) & (place <= grids.highest + 0.5))
        if kept.size:
            p, inside = n[kept].astype(np.float64), n[kept]
            p[0] += n[: kept[0]].sum()
            p[-1] += n[kept[-1] + 1 :].sum()
            _, code = np.unique(np.clip(np.rint(place[kept]), grids.lowest, grids.highest), return_inverse=True)
            q = (np.bincount(code, inside) / np.bincount(code))[code]
            out[channel, i] = (p / n.sum() * np.log(p * inside.sum() / (q * n.sum()))).sum()
    return out


@jit
def _gather(counts: np.ndarray, centres: np.ndarray, values: np.ndarray, weights: np.ndarray) -> int:
    """Put the bins that are not empty first; returns how many there are."""
    n = 0
    for i in range(counts.size):
        if counts[i] > 0:
            values[n] = centres[i]
            weights[n] = np.float64(counts[i])
            n += 1
    return n


@jit
def _squared_error(values: np.ndarray, weights: np.ndarray, grid: tuple[float, float, float, float]) -> float:
    """Sum the squared errors of one grid, given as (scale, zero point, lowest code, highest code)."""
    scale, zero_point, lowest, highest = grid
    total = 0.0
    for i in range(values.size):
        code = min(max(np.rint(values[i] / scale + zero_point), lowest), highest)
        error = values[i] - scale * (code - zero_point)
        total += weights[i] * error * error
    return total


@jit
def _divergence(values: np.ndarray, weights: np.ndarray, grid: tuple[float, float, float, float]) -> float:
    """Divergence of one grid, given as (scale, zero point, lowest code, highest code); values ascend."""
    scale, zero_point, lowest, highest = grid
    total, inside, below, above = 0.0, 0.0, 0.0, 0.0
    start, end = 0, 0
    for i in range(values.size):
        place = values[i] / scale + zero_point
        total += weights[i]
        if place < lowest - 0.5:
            below += weights[i]
            start = i + 1
        elif place > highest + 0.5:
            above += weights[i]
        else:
            inside += weights[i]
            end = i + 1
    if end <= start:
        return np.inf
    found, i = 0.0, start
    while i < end:
        code = min(max(np.rint(values[i] / scale + zero_point), lowest), highest)
        run, mass = i, 0.0
        while i < end and min(max(np.rint(values[i] / scale + zero_point), lowest), highest) == code:
            mass += weights[i]
            i += 1
        level = mass / (i - run)
        for j in range(run, i):
            p = weights[j] + (below if j == start else 0.0) + (above if j == end - 1 else 0.0)
            found += p / total * math.log(p * inside / (level * total))
    return found


@jit
def _costs(
    counts: np.ndarray, centres: np.ndarray, grids: Candidates, scratch: np.ndarray, entropy: bool, out: np.ndarray
) -> None:
    """Fill float64 (channels, n); scratch is float64 (2, bins)."""
    for channel in range(counts.shape[0]):
        n = _gather(counts[channel], centres[channel], scratch[0], scratch[1])
        values, weights = scratch[0, :n], scratch[1, :n]
        for i in range(out.shape[1]):
            grid = (grids.scale[channel, i], grids.zero_point[channel, i], float(grids.lowest), float(grids.highest))
            if entropy:
                out[channel, i] = _divergence(values, weights, grid)
            else:
                out[channel, i] = _squared_error(values, weights, grid)


def squared_errors(counts: np.ndarray, centres: np.ndarray, grids: Candidates) -> np.ndarray:
    """Sum of ``count * (x - rounded x)**2`` over bins, for each grid.

    Parameters
    ----------
    counts : int64 (channels, bins)
    centres : float64 (channels, bins)
        Values that stand for bins, ascending.
    grids : Candidates

    Returns
    -------
    float64 (channels, n)

    Raises
    ------
    ValueError
        Arrays of other dtypes or of shapes that do not fit each other.
    """
    return _run(counts, centres, grids, entropy=False)


def divergences(counts: np.ndarray, centres: np.ndarray, grids: Candidates) -> np.ndarray:
    """Kullback-Leibler divergence of the histogram from what is left of it on each grid, in nats.

    Values more than half a step beyond the ends of a grid are clipped. `P` is the histogram with clipped counts moved
    to the outermost bins that are kept. `Q` is what codes can tell of the bins that are kept: the counts that share a
    code, spread evenly over those of their bins that are not empty. Both are normalised, and the divergence is ``sum P
    log(P / Q)``. This is the threshold search of S. Migacz, "8-bit inference with TensorRT" (GTC 2017), for any grid.

    Parameters, results and errors are those of `squared_errors`.
    """
    return _run(counts, centres, grids, entropy=True)


def _run(counts: np.ndarray, centres: np.ndarray, grids: Candidates, *, entropy: bool) -> np.ndarray:
    shape = (counts.shape[0], *grids.scale.shape[1:])
    wanted = (
        ("counts", counts, np.int64, counts.shape),
        ("centres", centres, np.float64, counts.shape),
        ("scale", grids.scale, np.float64, shape),
        ("zero_point", grids.zero_point, np.float64, shape),
    )
    for name, array, dtype, expected in wanted:
        if array.dtype != dtype or array.ndim != 2 or array.shape != expected:
            found = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{name} must be a matrix of {np.dtype(dtype)} and shape {expected}, not {found}")
    counts, centres, scale, zero_point = (frozen(np.ascontiguousarray(array)) for _, array, _, _ in wanted)
    out = np.empty(shape)
    scratch = np.empty((2, counts.shape[1]))
    _costs(counts, centres, Candidates(scale, zero_point, int(grids.lowest), int(grids.highest)), scratch, entropy, out)
    return out
