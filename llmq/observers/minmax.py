"""The true extremes: nothing is clipped."""

from __future__ import annotations

import numpy as np

from llmq.observers.observer import Observer

__all__ = ["MinMax"]


class MinMax(Observer):
    """Keeps the least and the largest value."""

    _extremes: tuple[np.ndarray, np.ndarray] | None = None

    def _observe(self, rows: np.ndarray) -> None:
        low, high = rows.min(axis=1), rows.max(axis=1)
        if self._extremes is not None:
            if self._extremes[0].shape != low.shape:
                raise ValueError(f"{low.size} channels, but {self._extremes[0].size} before")
            low, high = np.minimum(low, self._extremes[0]), np.maximum(high, self._extremes[1])
        self._extremes = low, high

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        if self._extremes is None:
            raise ValueError("nothing was observed")
        return self._extremes
