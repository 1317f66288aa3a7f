"""The range of least squared error: rounding weighed against clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.observers.search import SearchObserver
from llmq_kernels.clipping import squared_errors

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.histogram import StreamingHistogram
    from llmq_kernels.clipping import Candidates

__all__ = ["MSE"]


class MSE(SearchObserver):
    """Takes the threshold of least ``sum (x - rounded x)**2``, over the middles of bins.

    A value lies less than half a bin from the middle, and no value's error changes faster than the value does: the root
    of the mean squared error of the chosen range is less than one bin above that of the best threshold.

    Parameters
    ----------
    spec, channel_axis, bins
        As for `HistogramObserver`.

    Examples
    --------
    >>> import numpy as np
    >>> from llmq.spec import QuantSpec
    >>> observer = MSE(QuantSpec(bits=4))
    >>> observer.observe(np.append(np.linspace(-1.0, 1.0, 10001), 8.0))  # one outlier
    >>> [end.item() for end in observer.range()]
    [-1.0, 1.0]
    """

    def _costs(self, histogram: StreamingHistogram, grids: Candidates) -> np.ndarray:
        return squared_errors(histogram.counts, histogram.centres(), grids)
