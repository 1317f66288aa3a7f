"""What calibration finds about the inputs of a weight: second moments, whole or their diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["InputMoments", "InputStatistics"]

_ROWS: Final = 1024
"""Tokens that are multiplied at a time."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Second moments of the inputs that a weight `(out_features, in_features)` met.

    With `dW` the error of a row of the weight, the mean squared error of that output is `dW @ moments @ dW`, or about
    `sum(energy * dW**2)` where channels are taken as uncorrelated.

    Parameters
    ----------
    energy : float32 (in_features,)
        Mean square of each input channel.
    tokens : int
        Inputs seen.
    moments : float32 (in_features, in_features) or None
        Mean of `x x^T`; `energy` is its diagonal.
    """

    energy: np.ndarray
    tokens: int
    moments: np.ndarray | None = None


class InputMoments:
    """Accumulates `InputStatistics` from activations.

    Parameters
    ----------
    columns : int
        `in_features`.
    whole : bool
        Whether to keep all moments, `4 * columns**2` bytes, or the diagonal alone.
    """

    def __init__(self, columns: int, *, whole: bool = False) -> None:
        self.tokens = 0
        self._energy = np.zeros(columns, np.float64)
        self._moments = np.zeros((columns, columns), np.float32) if whole else None

    def add(self, x: np.ndarray) -> None:
        """Count inputs, float32 (tokens, in_features)."""
        for start in range(0, x.shape[0], _ROWS):
            rows = x[start : start + _ROWS]
            self.tokens += rows.shape[0]
            if self._moments is None:
                self._energy += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
            else:
                self._moments += rows.T @ rows

    def statistics(self) -> InputStatistics:
        """Means over all inputs so far; the accumulator is used up.

        Raises
        ------
        ValueError
            No inputs.
        """
        if not self.tokens:
            raise ValueError("no inputs were counted")
        if self._moments is None:
            return InputStatistics((self._energy / self.tokens).astype(np.float32), self.tokens)
        self._moments /= np.float32(self.tokens)
        return InputStatistics(self._moments.diagonal().copy(), self.tokens, self._moments)
