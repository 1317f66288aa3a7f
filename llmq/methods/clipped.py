"""Scales from ranges that observers choose, group by group: percentile and entropy clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.methods.protocol import encode_rows, kernel_grid
from llmq.observers import range_for, scale_and_zero_point
from llmq_kernels.ranges import stored_scales

if TYPE_CHECKING:
    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["entropy", "percentile"]

_PERCENTILE: Final = 98.0
"""One value of 64 is clipped, none of fewer than 50."""


def percentile(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:  # noqa: ARG001
    """Quantize rows with groups clipped to their 98th percentile; see `llmq.observers.Percentile`."""
    return _observed(weight, spec, "percentile", percentile=_PERCENTILE)


def entropy(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:  # noqa: ARG001
    """Quantize rows with groups clipped where their histograms lose the least; see `llmq.observers.Entropy`.

    Seconds for a million weights: a way to compare, not for a whole model.
    """
    return _observed(weight, spec, "entropy")


def _observed(weight: np.ndarray, spec: QuantSpec, observer: str, **options: Any) -> QuantizedTensor:
    wide = weight.astype(np.float32)
    if not np.isfinite(wide).all():
        raise FloatingPointError("weight holds NaN or infinity")
    grid = kernel_grid(spec)
    if wide.size == 0:
        low = high = np.empty((len(wide), wide.shape[1] // spec.group_size), np.float32)
    else:
        low, high = range_for(wide, replace(spec, observer=observer), **options)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    return encode_rows(weight, spec, stored_scales(scale, grid), zero_point)
