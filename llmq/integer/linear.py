"""A fully connected layer of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmq.integer.activations import Quantized
from llmq.integer.product import ProductLayer, quantized_parts
from llmq.integer.weights import weight_array
from llmq.spec import QuantScheme
from llmq_kernels.integer import integer_matmul, integer_matmul_reference
from llmq_kernels.integer_layers import linear_layer

if TYPE_CHECKING:
    from typing import Self

    from llmq_kernels.integer_layers import InputGrid, RowScales

__all__ = ["Linear"]


@dataclass(frozen=True, eq=False)
class Linear(ProductLayer):
    """``y = x @ w.T + bias`` of integers, (..., in_features) to (..., out_features); made by `Linear.quantize`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weight.shape) != 2:
            raise ValueError(f"weight must have shape (out_features, in_features), not {self.weight.shape}")

    @classmethod
    def quantize(
        cls,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        scheme: QuantScheme | None = None,
        *,
        input_range: tuple[float, float] | None = None,
        output_range: tuple[float, float] | None = None,
    ) -> Self:
        """Quantize a layer.

        Parameters
        ----------
        weight : float (out_features, in_features)
        bias : float (out_features,), optional
        scheme : QuantScheme, optional
            `QuantScheme()` if none.
        input_range : (float, float), optional
            What calibration found (`Observer.range`); required where inputs are static.
        output_range : (float, float), optional
            Required where the scheme has an output.

        Raises
        ------
        ValueError
            Arrays or ranges that do not fit each other or the scheme.

        Examples
        --------
        >>> layer = Linear.quantize(np.array([[1.0, -2.0]]), np.array([0.5]), input_range=(0.0, 255.0))
        >>> layer(np.array([[3.0, 1.0]], np.float32)).round(1).tolist()
        [[1.5]]
        """
        weight = weight_array(weight)
        if weight.ndim != 2:
            raise ValueError(f"weight must have shape (out_features, in_features), not {weight.shape}")
        return cls(*quantized_parts(weight, bias, scheme or QuantScheme(), (input_range, output_range)))

    def _run(self, x: np.ndarray | Quantized, *, reference: bool) -> np.ndarray | Quantized:
        if not x.shape or x.shape[-1] != self.weight.columns:
            raise ValueError(f"x must have shape (..., {self.weight.columns}), not {x.shape}")
        if len(x.shape) == 2:
            return super()._run(x, reference=reference)
        before = x.shape[:-1]
        flat = x.with_codes(x.codes.reshape(-1, x.shape[-1])) if isinstance(x, Quantized) else _rows_of(x)
        y = super()._run(flat, reference=reference)
        shape = (*before, self.weight.rows)
        return y.with_codes(y.codes.reshape(shape)) if isinstance(y, Quantized) else y.reshape(shape)

    def _sums(self, x: Quantized, part: int, *, reference: bool) -> np.ndarray:
        weight = self.weight.parts[part]
        start = sum(other.columns for other in self.weight.parts[:part])
        codes = x.codes[:, start : start + weight.columns]
        if reference:
            return integer_matmul_reference(codes, weight, x.zero_point)
        return integer_matmul(np.ascontiguousarray(codes), weight, x_zero_point=x.zero_point)

    def _layer(self, x: np.ndarray, grid: InputGrid, scales: RowScales) -> np.ndarray:
        return linear_layer(x, self.weight.parts[0], grid, scales)

    def _multiply_floats(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ self.weight.values.T)


def _rows_of(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
