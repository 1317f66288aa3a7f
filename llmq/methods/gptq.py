"""GPTQ: codes that make up for each other's errors, on scales from the activation-weighted search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.methods.protocol import energy_of, kernel_grid, quantized
from llmq_kernels.feedback import feedback
from llmq_kernels.search import search_scales

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantizedTensor, QuantSpec


def gptq(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:
    """Quantize rows so that their outputs for the calibration's inputs change least.

    Scales and zero points are those of `imatrix` and stay fixed ("static groups"). Inside groups columns are quantized
    by falling energy, and groups by their largest, so that no index of groups must be stored. Three sweeps of
    coordinate descent follow. See `llmq_kernels.feedback` for the formulas and papers.

    Raises
    ------
    ValueError
        No statistics, or none of the moments.
    """
    grid = kernel_grid(spec)
    scale, zero_point = search_scales(weight, grid, energy_of(statistics))
    assert statistics is not None
    curvature = statistics.curvature(spec.group_size)
    return quantized(feedback(weight, grid, scale, zero_point, curvature=curvature), spec)
