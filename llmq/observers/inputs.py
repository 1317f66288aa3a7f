"""What calibration finds about the inputs of a weight: second moments, whole or their diagonal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq_kernels.curvature import factorize

if TYPE_CHECKING:
    from llmq_kernels.curvature import Curvature

__all__ = ["InputMoments", "InputStatistics"]

_ROWS: Final = 1024
"""Tokens that are multiplied at a time."""

_COLUMNS: Final = 512


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
    spendable : bool
        Whether the moments may be overwritten by what is made of them: nobody needs them afterwards.
    """

    energy: np.ndarray
    tokens: int
    moments: np.ndarray | None = None
    spendable: bool = False
    _curvatures: dict[int, Curvature] = field(default_factory=dict, init=False, repr=False)

    def curvature(self, group_size: int) -> Curvature:
        """Moments ordered and factorized for groups of a size; the last ones are kept.

        Raises
        ------
        ValueError
            There are no moments, they cannot be factorized, or were spent for another group size.
        """
        if self.moments is None:
            raise ValueError("all moments of the inputs are needed, not their diagonal alone")
        if group_size not in self._curvatures:
            if self.spendable and self._curvatures:
                raise ValueError("the moments were spent for another group size")
            self._curvatures.clear()  # each takes as much memory as the moments
            self._curvatures[group_size] = factorize(self.moments, group_size, overwrite=self.spendable)
        return self._curvatures[group_size]


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
                # By columns: the product as a whole would take as much memory again.
                for left in range(0, rows.shape[1], _COLUMNS):
                    self._moments[left:, left : left + _COLUMNS] += rows[:, left:].T @ rows[:, left : left + _COLUMNS]

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
        for left in range(0, len(self._moments), _COLUMNS):
            part = self._moments[left:, left : left + _COLUMNS]
            part /= np.float32(self.tokens)
            self._moments[left : left + _COLUMNS, left:] = part.T
        return InputStatistics(self._moments.diagonal().copy(), self.tokens, self._moments)
