"""Histograms of bounded size that grow with the range of their data, and observers that choose ranges from them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.observer import Observer
from llmq_kernels.histogram import count_in_bins

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["HistogramObserver", "StreamingHistogram"]


class StreamingHistogram:
    """Counts values of each channel in `bins` bins that always hold all of them.

    The width of a channel's bins is a power of two, at least the rounding step of its largest magnitude, and their
    edges are whole multiples of it: the least such width at which the extremes lie less than `bins` bins apart. When
    the range grows, neighbours are merged in pairs, which loses nothing: the histogram is the same whatever pieces the
    data came in and whatever their order, and the one that a single pass would have counted.

    Parameters
    ----------
    channels : int
    bins : int
        At least 2. Bins are narrower than ``2 * (max - min) / (bins - 1)``, or as wide as a rounding step of float32.

    Attributes
    ----------
    counts : int64 (channels, bins)
        8 bytes a bin and channel are all the memory there is.
    exponent : int64 (channels,)
        Bins are ``2**exponent`` wide.
    first : int64 (channels,)
        Bin `j` holds ``[first + j, first + j + 1) * 2**exponent``.
    low, high : float32 (channels,)
        The extremes, exactly; infinite and out of order while there is no data.

    Examples
    --------
    >>> histogram = StreamingHistogram(1, 4)
    >>> histogram.add(np.array([[0.0, 1.0, 1.5, 3.0]], np.float32))
    >>> histogram.counts.tolist(), histogram.width.tolist()
    ([[1, 2, 0, 1]], [1.0])
    >>> histogram.add(np.array([[7.0]], np.float32))
    >>> histogram.counts.tolist(), histogram.width.tolist()
    ([[3, 1, 0, 1]], [2.0])
    """

    def __init__(self, channels: int, bins: int) -> None:
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, not {bins}")
        self.counts = np.zeros((channels, bins), np.int64)
        self.exponent = np.zeros(channels, np.int64)
        self.first = np.zeros(channels, np.int64)
        self.low = np.full(channels, np.inf, np.float32)
        self.high = np.full(channels, -np.inf, np.float32)

    @property
    def width(self) -> np.ndarray:
        """Widths of bins, float64 (channels,)."""
        return np.asarray(np.ldexp(1.0, self.exponent), np.float64)

    def edges(self, place: np.ndarray) -> np.ndarray:
        """Lower edges of bins `place`, int64 (channels, ...), float64."""
        behind = (-1,) + (1,) * (place.ndim - 1)
        return np.asarray(
            np.ldexp((self.first.reshape(behind) + place).astype(np.float64), self.exponent.reshape(behind))
        )

    def centres(self) -> np.ndarray:
        """Middles of all bins, float64 (channels, bins)."""
        return np.asarray(self.edges(np.arange(self.counts.shape[1])[None, :]) + self.width[:, None] / 2)

    def add(self, rows: np.ndarray) -> None:
        """Count values, float32 (channels, n), finite."""
        if rows.shape[1] == 0:
            return
        low, high = np.minimum(rows.min(axis=1), self.low), np.maximum(rows.max(axis=1), self.high)
        exponent, first = _place(low, high, self.counts.shape[1])
        for channel in np.flatnonzero((exponent != self.exponent) | (first != self.first)).tolist():
            self.counts[channel] = self._moved(channel, int(exponent[channel]), int(first[channel]))
        self.exponent, self.first, self.low, self.high = exponent, first, low, high
        count_in_bins(rows, exponent, first, self.counts)

    def _moved(self, channel: int, exponent: int, first: int) -> np.ndarray:
        """Counts of a channel in bins that are as wide or wider, int64 (bins,)."""
        filled = np.flatnonzero(self.counts[channel])
        # Bins lie at most 2**25 widths from zero: a shift by 63 leaves 0 or -1, as all larger ones would.
        place = ((self.first[channel] + filled) >> min(exponent - int(self.exponent[channel]), 63)) - first
        moved = np.zeros(self.counts.shape[1], np.int64)
        np.add.at(moved, place, self.counts[channel, filled])
        return moved


def _place(low: np.ndarray, high: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Exponents of widths and numbers of the first bins, int64 (channels,) each, for extremes float32 (channels,)."""
    a, b = low.astype(np.float64), high.astype(np.float64)
    most = np.maximum(np.abs(a), np.abs(b))
    # A magnitude of m * 2**e, 1/2 <= m < 1, has a rounding step of 2**(e - 24); subnormal ones and zero, 2**-149.
    exponent = np.where(most > 0, np.maximum(np.frexp(most)[1].astype(np.int64) - 24, -149), -149)
    while True:
        first, last = (np.floor(np.ldexp(end, -exponent)) for end in (a, b))
        wide = last - first >= bins
        if not wide.any():
            return exponent, first.astype(np.int64)
        exponent = exponent + wide


class HistogramObserver(Observer):
    """An observer that keeps a histogram for each channel.

    Parameters
    ----------
    spec, channel_axis
        As for `Observer`.
    bins : int
        Bins for each channel, 8 bytes each.
    """

    def __init__(self, spec: QuantSpec, *, channel_axis: int | None = None, bins: int = 2048) -> None:
        super().__init__(spec, channel_axis=channel_axis)
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, not {bins}")
        self.bins = bins
        self.histogram: StreamingHistogram | None = None
        """What was counted; None before there is data."""

    def _observe(self, rows: np.ndarray) -> None:
        if self.histogram is None:
            self.histogram = StreamingHistogram(len(rows), self.bins)
        self.histogram.add(rows)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.histogram is not None
        return self._choose(self.histogram)

    @abstractmethod
    def _choose(self, histogram: StreamingHistogram) -> tuple[np.ndarray, np.ndarray]:
        """Choose `[a, b]`, float32 (channels,) each."""
