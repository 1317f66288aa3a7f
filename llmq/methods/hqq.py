"""Half-quadratic quantization: a few large errors pull less at the scale than in least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.methods.protocol import encode_rows, kernel_grid
from llmq_kernels.half_quadratic import half_quadratic_scales

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantizedTensor, QuantSpec


def hqq(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:  # noqa: ARG001
    """Quantize rows by scales and zero points found by half-quadratic splitting; see `llmq_kernels.half_quadratic`."""
    scale, zero_point = half_quadratic_scales(weight, kernel_grid(spec))
    return encode_rows(weight, spec, scale, zero_point)
