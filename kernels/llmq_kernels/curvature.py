"""Second moments of a weight's inputs, ordered and factorized in place, for `llmq_kernels.feedback`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["Curvature", "factorize", "factorize_reference", "order_reference"]

_PANEL: Final = 256
"""Columns that are factorized at a time."""

_TRIES: Final = 6


@dataclass(frozen=True, eq=False)
class Curvature:
    """The quadratic `e H e` that an error `e` of a row of a weight costs, with `H = M D M'`, `M` unit lower triangular.

    Parameters
    ----------
    order : int64 (columns,)
        Columns by position; the last position is quantized first.
    matrix : float32 (columns, columns)
        By position: `H` in the upper triangle and on the diagonal, `M` below it.
    damping : float
        What was added to the diagonal, as a share of its mean.
    """

    order: np.ndarray
    matrix: np.ndarray
    damping: float

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of `H`, float32 (stop - start, columns)."""
        rows = np.concatenate([self.matrix[:start, start:stop].T, self.matrix[start:stop, start:]], axis=1)
        square = np.triu(rows[:, start:stop])
        rows[:, start:stop] = square + np.triu(square, 1).T
        return rows


def order_reference(energy: np.ndarray, group_size: int) -> np.ndarray:
    """Specify in which order columns stand: groups stay together, so that their scales do too.

    Inside a group columns of large energy stand last, and groups with a large energy stand last, for what comes last is
    quantized first, and others make up for its error (after the order of GPTQModel, which needs no index of groups).

    Examples
    --------
    >>> order_reference(np.array([1.0, 2.0, 9.0, 3.0, 5.0, 4.0]), 2).tolist()
    [0, 1, 5, 4, 3, 2]
    """
    groups = energy.reshape(-1, group_size)
    inner = np.argsort(groups, axis=1, kind="stable")
    columns = inner + np.arange(len(groups))[:, None] * group_size
    return np.asarray(columns[np.argsort(groups.max(axis=1), kind="stable")].reshape(-1), np.int64)


def factorize_reference(moments: np.ndarray, order: np.ndarray, damping: float) -> np.ndarray:
    """Specify the factor `M` of damped moments in plain NumPy, float64 (columns, columns).

    Examples
    --------
    >>> factorize_reference(np.array([[4.0, 2.0], [2.0, 5.0]]), np.array([0, 1]), 0.0).tolist()
    [[1.0, 0.0], [0.5, 1.0]]
    """
    h = moments.astype(np.float64)[np.ix_(order, order)]
    h[np.diag_indices_from(h)] += damping * h.diagonal().mean()
    lower = np.linalg.cholesky(h)
    return np.asarray(lower / lower.diagonal())


def factorize(moments: np.ndarray, group_size: int, damping: float = 0.01, *, overwrite: bool = False) -> Curvature:
    """Order the columns, dampen the moments and factorize them.

    Parameters
    ----------
    moments : float32 (columns, columns)
        Symmetric; mean of `x x'` over the inputs `x`.
    group_size : int
        Columns that share a scale.
    damping : float
        Share of the mean of the diagonal to add to it; ten times as much, again and again, where that does not make
        the moments positive definite.
    overwrite : bool
        Whether the result may take the place of the moments.

    Returns
    -------
    Curvature

    Raises
    ------
    ValueError
        Moments of another shape or dtype, NaN or infinity, or none that any damping helps.
    """
    columns = moments.shape[0]
    if moments.dtype != np.float32 or moments.shape != (columns, columns) or columns % group_size:
        raise ValueError(
            f"moments must be float32 (n, n) in groups of {group_size}, not {moments.dtype} {moments.shape}"
        )
    energy = moments.diagonal()
    if not np.isfinite(energy).all():
        raise ValueError("moments must be finite")
    order = order_reference(energy, group_size)
    matrix = moments if overwrite else moments.copy()
    _permute(matrix, order)
    mean = np.float32(energy.mean(dtype=np.float64)) or np.float32(1.0)
    added = np.float32(0.0)
    for attempt in range(_TRIES):
        share = damping * 10.0**attempt
        matrix[np.diag_indices_from(matrix)] += np.float32(share) * mean - added
        added = np.float32(share) * mean
        try:
            _factorize(matrix)
        except np.linalg.LinAlgError:
            continue
        return Curvature(order, matrix, share)
    raise ValueError("moments are not positive definite")


def _permute(matrix: np.ndarray, order: np.ndarray) -> None:
    """Bring columns and rows into an order, in place: rows along the cycles of the permutation."""
    for row in matrix:
        row[:] = row[order]
    placed = np.zeros(order.size, bool)
    for first in range(order.size):
        if placed[first]:
            continue
        kept, place = matrix[first].copy(), first
        while order[place] != first:
            matrix[place] = matrix[order[place]]
            placed[place] = True
            place = int(order[place])
        matrix[place] = kept
        placed[place] = True


def _factorize(matrix: np.ndarray) -> None:
    """Write `M` below the diagonal, panel by panel, from what stands above it; LinAlgError if that is not positive."""
    columns = matrix.shape[0]
    roots = np.empty(columns, np.float32)
    for start in range(0, columns, _PANEL):
        stop = min(start + _PANEL, columns)
        # What the columns before leave of this panel; the Cholesky factor of those stands below the diagonal.
        panel = np.ascontiguousarray(matrix[start:stop, start:].T)
        panel -= matrix[start:, :start] @ matrix[start:stop, :start].T if start else np.float32(0.0)
        lower = np.linalg.cholesky(np.triu(panel[: stop - start].T).T)  # only the upper triangle is sound
        roots[start:stop] = lower.diagonal()
        below = np.tril_indices(stop - start, -1)
        matrix[start:stop, start:stop][below] = lower[below]
        matrix[stop:, start:stop] = np.linalg.solve(lower, panel[stop - start :].T).T
    for start in range(0, columns, _PANEL):
        stop = min(start + _PANEL, columns)
        below = np.tril_indices(stop - start, -1)
        square = matrix[start:stop, start:stop]
        square[below] = (square / roots[start:stop])[below]
        matrix[stop:, start:stop] /= roots[start:stop]
