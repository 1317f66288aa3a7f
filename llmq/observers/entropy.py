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
    Values in the bin of zero do not count where there are others: every grid has a code for zero, and the many zeros that
    a ReLU leaves would only ask for steps so small that nothing shares their code.

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
        fine = grids.scale < histogram.width[:, None]
        fine[:, 0] = False  # the whole range is always there to choose
        return np.where(fine, np.inf, costs)
