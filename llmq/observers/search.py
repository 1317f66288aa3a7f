"""Observers that try thresholds and take the one of least cost."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.observers.histogram import HistogramObserver
from llmq.observers.parameters import scale_and_zero_point
from llmq_kernels.clipping import Candidates

if TYPE_CHECKING:
    from llmq.observers.histogram import StreamingHistogram

__all__ = ["SearchObserver", "thresholds"]

_STEPS: Final = 16
"""Thresholds tried for each halving of the range."""

_HALVINGS: Final = 6


def thresholds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges to choose from: `[low, high]` cut to magnitudes ``m * 2**(-i / 16)``, with ``m = max(|low|, |high|)``.

    Parameters
    ----------
    low, high : float (channels,)

    Returns
    -------
    a, b : float32 (channels, 97)
        From the whole range down to a 64th of it.

    Examples
    --------
    >>> a, b = thresholds(np.array([-1.0]), np.array([4.0]))
    >>> a[0, [0, 16, 32, 48]].tolist(), b[0, [0, 16, 32, 48]].tolist()
    ([-1.0, -1.0, -1.0, -0.5], [4.0, 2.0, 1.0, 0.5])
    """
    factor = np.exp2(-np.arange(_HALVINGS * _STEPS + 1) / _STEPS)
    most = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)[:, None] * factor
    a, b = (np.clip(end[:, None], -most, most).astype(np.float32) for end in (low, high))
    return a, b


class SearchObserver(HistogramObserver):
    """Tries `thresholds` and takes the one of least cost on the histogram; of equals, the widest."""

    def _choose(self, histogram: StreamingHistogram) -> tuple[np.ndarray, np.ndarray]:
        low, high = thresholds(histogram.low, histogram.high)
        scale, zero_point = scale_and_zero_point(low, high, self.spec)
        middle = 0.5 if self.spec.bits == 1 else float(2 ** (self.spec.bits - 1))
        grids = Candidates(
            scale.astype(np.float64),
            np.full(scale.shape, middle) if zero_point is None else zero_point.astype(np.float64),
            1 if self.spec.range == "narrow" else 0,
            2**self.spec.bits - 1,
        )
        best = np.argmin(self._costs(histogram, grids), axis=1)[:, None]
        return np.take_along_axis(low, best, axis=1)[:, 0], np.take_along_axis(high, best, axis=1)[:, 0]

    @abstractmethod
    def _costs(self, histogram: StreamingHistogram, grids: Candidates) -> np.ndarray:
        """Cost of each threshold, float64 (channels, n)."""
