"""Ranges from data. To add an observer, write one file and one row of `OBSERVERS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.observers.entropy import Entropy
from llmq.observers.histogram import HistogramObserver, StreamingHistogram
from llmq.observers.inputs import InputMoments, InputStatistics
from llmq.observers.minmax import MinMax
from llmq.observers.moving_average import MovingAverage
from llmq.observers.mse import MSE
from llmq.observers.observer import Observer
from llmq.observers.parameters import dequantize_array, quantize_array, scale_and_zero_point
from llmq.observers.percentile import Percentile

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = [
    "MSE",
    "OBSERVERS",
    "Entropy",
    "HistogramObserver",
    "InputMoments",
    "InputStatistics",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "StreamingHistogram",
    "dequantize_array",
    "observer_class",
    "quantize_array",
    "range_for",
    "scale_and_zero_point",
]

OBSERVERS: Final[dict[str, type[Observer]]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "percentile": Percentile,
    "mse": MSE,
    "entropy": Entropy,
}
"""What chooses ranges, by name."""

_CHANNELS: Final = 1024
"""Ranges of a weight that are found at a time: each may need a histogram."""


def observer_class(spec: QuantSpec) -> type[Observer]:
    """Find the observer that `spec` names; ValueError if there is none of that name."""
    if spec.observer not in OBSERVERS:
        raise ValueError(f"unknown observer {spec.observer!r}: choose one of {', '.join(OBSERVERS)}")
    return OBSERVERS[spec.observer]


def range_for(weight: np.ndarray, spec: QuantSpec, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Choose the ranges of a weight by the observer that `spec` names, in bounded memory.

    Parameters
    ----------
    weight : float (rows, ...)
        Everything behind the first axis makes up a row.
    spec : QuantSpec
        Its `observer`, and its `strategy`: `tensor`, `channel` (a row) or `group` (`group_size` elements of a row).
    **options
        What the observer takes besides: `percentile=99.9`, `bins=512`, `averaging=0.1`.

    Returns
    -------
    a, b : float32
        Of shape () for `tensor`, (rows,) for `channel`, (rows, n_groups) for `group`: as `scale_and_zero_point` takes
        them.

    Raises
    ------
    TypeError
        Options that the observer does not have.
    ValueError
        An unknown observer, the strategy `token`, an empty weight, groups that do not divide a row, NaN or infinity.

    Examples
    --------
    >>> weight = np.array([[0.5, -1.0, 2.0, 3.0]], np.float32)
    >>> from llmq.spec import QuantSpec
    >>> a, b = range_for(weight, QuantSpec(bits=4, group_size=2, symmetric=False))
    >>> a.tolist(), b.tolist()
    ([[-1.0, 2.0]], [[0.5, 3.0]])
    """
    kind = observer_class(spec)
    weight = np.asarray(weight)
    if weight.ndim < 2 or weight.size == 0:
        raise ValueError(f"a weight must have rows and columns, not the shape {weight.shape}")
    groups, shape = _groups(weight.reshape(weight.shape[0], -1), spec)
    low, high = np.empty((2, len(groups)), np.float32)
    for start in range(0, len(groups), _CHANNELS):
        part = slice(start, start + _CHANNELS)
        observer = kind(spec, channel_axis=0, **options)
        observer.observe(groups[part])
        low[part], high[part] = observer.range()
    return low.reshape(shape), high.reshape(shape)


def _groups(flat: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, tuple[int, ...]]:
    """Reshape a weight to (ranges, values), and tell the shape of its ranges."""
    if spec.strategy == "tensor":
        return flat.reshape(1, -1), ()
    if spec.strategy == "token":
        raise ValueError("weights have ranges by tensor, channel or group, not by token")
    rows, columns = flat.shape
    size = columns if spec.group_size == -1 else spec.group_size
    if columns % size:
        raise ValueError(f"groups of {size} do not divide rows of {columns}")
    return flat.reshape(-1, size), (rows,) if spec.strategy == "channel" else (rows, columns // size)
