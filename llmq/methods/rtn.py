"""Round to nearest: the scale comes from the extremes of the group. Everyone's baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.methods.protocol import kernel_grid, quantized
from llmq_kernels.quantize import quantize_to_range

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantizedTensor, QuantSpec


def rtn(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:  # noqa: ARG001
    """Quantize rows with the scale that just holds each group.

    Symmetric, full range: ``s = max|x| / (2**(bits-1) - 1/2)``; narrow: ``s = max|x| / (2**(bits-1) - 1)``;
    asymmetric: ``s = (max - min) / (2**bits - 1)``, ``z = -round(min / s)``, over a range that includes zero.
    """
    return quantized(quantize_to_range(weight, kernel_grid(spec)), spec)
