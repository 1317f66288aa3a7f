"""Means over the positions of a text, and how far off they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean over positions with its standard error, taken in two ways.

    Parameters
    ----------
    mean : float
    se : float
        Were all positions independent: their standard deviation over the square root of their number.
    se_clustered : float
        With windows as clusters: neighbouring positions share a topic and its difficulty, windows hardly do.
    """

    mean: float
    se: float
    se_clustered: float

    def scaled(self, factor: float) -> Estimate:
        """The same times a factor."""
        return Estimate(self.mean * factor, self.se * factor, self.se_clustered * factor)


def estimate(values: np.ndarray, sizes: np.ndarray) -> Estimate:
    """Mean of values that come in windows of some sizes.

    With `W` windows `w` of `n_w` values that sum to `s_w`, `N` values in all and their mean `m`, the clustered error is
    that of a ratio of two sums, `sqrt(W / (W - 1) * sum((s_w - n_w * m)**2)) / N` (Cochran, "Sampling Techniques",
    section 6.3). Errors that one value, or one window, cannot tell are NaN.

    Parameters
    ----------
    values : float64 (n,)
        At least one; infinity makes mean and errors infinite or NaN.
    sizes : int64 (n_windows,)
        Values of each window, in order; they sum to `n`.

    >>> found = estimate(np.array([1.0, 1.0, 3.0, 3.0]), np.array([2, 2]))
    >>> found.mean, round(found.se, 4), round(found.se_clustered, 4)
    (2.0, 0.5774, 1.0)
    """
    mean = float(values.mean())
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
        sums = np.add.reduceat(values, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
        squares = float(np.square(sums - sizes * mean).sum())
    count = sizes.size
    clustered = math.sqrt(count / (count - 1) * squares) / values.size if count > 1 else math.nan
    return Estimate(mean, spread / math.sqrt(values.size), clustered)
