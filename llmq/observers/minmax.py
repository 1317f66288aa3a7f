"""The true extremes: nothing is clipped."""

from __future__ import annotations

import numpy as np

from llmq.observers.observer import Observer

__all__ = ["MinMax"]


class MinMax(Observer):
    """Keeps the least and the largest value.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> observer = MinMax(QuantSpec(bits=8, symmetric=False))
    >>> observer.observe(np.array([0.5, -1.0]))
    >>> observer.observe(np.array([3.0]))
    >>> [end.item() for end in observer.range()]
    [-1.0, 3.0]
    """

    _extremes: tuple[np.ndarray, np.ndarray] | None = None

    def _observe(self, rows: np.ndarray) -> None:
        low, high = rows.min(axis=1), rows.max(axis=1)
        if self._extremes is not None:
            low, high = np.minimum(low, self._extremes[0]), np.maximum(high, self._extremes[1])
        self._extremes = low, high

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        assert self._extremes is not None
        return self._extremes
