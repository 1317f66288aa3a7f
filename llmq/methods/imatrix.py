"""Least squares weighted by activations: an error counts by the mean square of the inputs that it meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.methods.protocol import encode_rows, energy_of, kernel_grid
from llmq_kernels.search import search_scales

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantizedTensor, QuantSpec


def imatrix(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> QuantizedTensor:
    """Quantize rows as `mse` does, with errors weighted after the importance matrices of llama.cpp.

    The weights are ``energy * sqrt(2 * mean(x**2) + x**2)``, the mean over the group; see
    `llmq_kernels.search_weights`.

    Raises
    ------
    ValueError
        No statistics.
    """
    scale, zero_point = search_scales(weight, kernel_grid(spec), energy_of(statistics))
    return encode_rows(weight, spec, scale, zero_point)
