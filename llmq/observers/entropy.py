"""The range that loses the least information: the entropy calibration of TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.search import SearchObserver
from llmq_kernels.clipping import divergences

if TYPE_CHECKING:
    from llmq.observers.histogram import StreamingHistogram
    from llmq.spec import QuantSpec
    from llmq_kernels.clipping import Candidates

__all__ = ["Entropy"]


class Entropy(SearchObserver):
    """Takes the threshold of least Kullback-Leibler divergence between the histogram and what its codes can tell.

    S. Migacz, "8-bit inference with TensorRT" (GTC 2017); `llmq_kernels.clipping.divergences` has the formula. A step
    of the grid is never less than a bin: finer ones would tell all bins apart and lose nothing, whatever they clip.
    Values in the bin of zero do not count where there are others: every grid has a code for zero, and the many zeros
    that a ReLU leaves would only ask for steps so small that nothing shares their code. A cut keeps at least as many
    bins that are not empty as there are codes: the fewer it keeps, the less there is to lose, and of one nothing.

    Parameters
    ----------
    spec, channel_axis
        As for `Observer`.
    bins : int
        Bins for each channel, 8 bytes each; at least two for each code.

    Raises
    ------
    ValueError
        Too few bins.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> observer = Entropy(QuantSpec(bits=4))
    >>> observer.observe(np.append(np.linspace(-1.0, 1.0, 10001), 8.0))  # one outlier
    >>> [end.item() for end in observer.range()]
    [-1.0, 1.0]
    """

    def __init__(self, spec: QuantSpec, *, channel_axis: int | None = None, bins: int = 2048) -> None:
        super().__init__(spec, channel_axis=channel_axis, bins=bins)
        if bins < 2 << spec.bits:
            raise ValueError(f"{spec.bits} bits need at least {2 << spec.bits} bins, not {bins}")

    def _costs(self, histogram: StreamingHistogram, grids: Candidates) -> np.ndarray:
        centres = histogram.centres()
        counts = np.where((centres > 0) & (centres < histogram.width[:, None]), 0, histogram.counts)
        counts = np.where(counts.any(axis=1, keepdims=True), counts, histogram.counts)
        costs = divergences(counts, centres, grids)
        left_out = (grids.scale < histogram.width[:, None]) | (_kept(counts, centres, grids) < 2**self.spec.bits)
        left_out[:, 0] = False  # the whole range is always there to choose
        return np.where(left_out, np.inf, costs)


def _kept(counts: np.ndarray, centres: np.ndarray, grids: Candidates) -> np.ndarray:
    """Bins that are not empty and that grids do not clip, int64 (channels, n)."""
    low, high = (grids.scale * (code - grids.zero_point) for code in (grids.lowest - 0.5, grids.highest + 0.5))
    found = np.empty(grids.scale.shape, np.int64)
    for channel, some in enumerate(counts > 0):
        values = centres[channel][some]
        found[channel] = np.searchsorted(values, high[channel], "right") - np.searchsorted(values, low[channel])
    return found
