"""How far some values are from what they should be: sums over blocks, and the figures made of them."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["ErrorSums", "decibels", "normalized"]


def normalized(squared_error: float, squares: float) -> float:
    """Squared error over the squares of what it is an error of (NMSE); infinite where they are zero and it is not."""
    if squares:
        return squared_error / squares
    return math.inf if squared_error > 0.0 else squared_error


def decibels(nmse: float) -> float:
    """Signal to quantization noise (SQNR) in decibels; infinite without an error."""
    # math.log10 takes infinity and NaN as they are, but refuses 0.
    return -10.0 * math.log10(nmse) if nmse else math.inf


class ErrorSums:
    """Sums over the elements of two arrays seen so far, in float64.

    Attributes
    ----------
    error, before, after, product : float
        Sums of the squared difference, of both squares and of the products.
    largest : float
        Largest absolute difference.
    """

    def __init__(self) -> None:
        self.error = self.before = self.after = self.product = self.largest = 0.0

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Count a block of what it should be and of what it is, float of one shape."""
        x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
        difference = y - x
        self.error += float(difference @ difference)
        self.before += float(x @ x)
        self.after += float(y @ y)
        self.product += float(x @ y)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def nmse(self) -> float:
        """Squared error over squares."""
        return normalized(self.error, self.before)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, as vectors; 1 where they are equal."""
        if self.error == 0.0:
            return 1.0
        length = math.sqrt(self.before * self.after)
        return self.product / length if length else 0.0
