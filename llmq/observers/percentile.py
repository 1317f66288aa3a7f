"""A range that leaves a fixed share of the values out, whatever they are."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.histogram import HistogramObserver

if TYPE_CHECKING:
    from llmq.observers.histogram import StreamingHistogram
    from llmq.spec import QuantSpec

__all__ = ["Percentile"]


class Percentile(HistogramObserver):
    """Clips at most ``1 - percentile / 100`` of the values: Wu et al., arXiv:2004.09602, section 4.

    Symmetric specs clip that share of the largest magnitudes; asymmetric ones half of it at either end. The range
    reaches up to the edge of the bin in which the exact percentile lies: less than a bin beyond it, and never beyond
    the extremes.

    Parameters
    ----------
    spec, channel_axis, bins
        As for `HistogramObserver`.
    percentile : float
        Above 0, at most 100 (nothing is clipped).

    Raises
    ------
    ValueError
        `percentile` or `bins` out of range.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> observer = Percentile(QuantSpec(bits=8), percentile=75)
    >>> observer.observe(np.array([-1.0, 2.0, 3.0, 400.0]))
    >>> [end.item() for end in observer.range()]
    [-3.25, 3.25]
    """

    def __init__(
        self, spec: QuantSpec, *, channel_axis: int | None = None, bins: int = 2048, percentile: float = 99.99
    ) -> None:
        super().__init__(spec, channel_axis=channel_axis, bins=bins)
        if not 0.0 < percentile <= 100.0:
            raise ValueError(f"percentile must be above 0 and at most 100, not {percentile}")
        self.percentile = percentile

    def _choose(self, histogram: StreamingHistogram) -> tuple[np.ndarray, np.ndarray]:
        n = int(histogram.counts[0].sum())
        # As the decimal that was written: 99.9 % of 1000 are 999.
        outside = n * (1 - Fraction(str(self.percentile)) / 100)
        if self.spec.symmetric:
            most = _magnitude(histogram, n - int(outside))
            return -most, most
        clipped = int(outside / 2)
        reached = histogram.counts.cumsum(axis=1)
        low = histogram.edges((reached < clipped + 1).sum(axis=1))
        high = histogram.edges((reached < n - clipped).sum(axis=1) + 1)
        return np.maximum(low, histogram.low).astype(np.float32), np.minimum(high, histogram.high).astype(np.float32)


def _magnitude(histogram: StreamingHistogram, rank: int) -> np.ndarray:
    """Upper edge of the bin in which the magnitude of a rank lies, 1 the least; float32 (channels,)."""
    place = histogram.first[:, None] + np.arange(histogram.counts.shape[1])
    # Bin -1 holds magnitudes as bin 0 does, -2 as 1.
    size = np.where(place < 0, -1 - place, place)
    order = np.argsort(size, axis=1, kind="stable")
    reached = np.take_along_axis(histogram.counts, order, axis=1).cumsum(axis=1)
    found = np.take_along_axis(order, (reached < rank).sum(axis=1)[:, None], axis=1)
    edge = np.ldexp((np.take_along_axis(size, found, axis=1)[:, 0] + 1).astype(np.float64), histogram.exponent)
    return np.asarray(np.minimum(edge, np.maximum(np.abs(histogram.low), np.abs(histogram.high))), np.float32)
