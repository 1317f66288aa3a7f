"""Layers before they are quantized, in NumPy: what calibration runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llmq.integer.convolution import Conv1d, Conv2d, Geometry, convolution_of, convolve_floats, flat_geometry
from llmq.integer.linear import Linear

if TYPE_CHECKING:
    from llmq.integer.sequential import Layer
    from llmq.spec import QuantScheme

__all__ = ["FloatConv1d", "FloatConv2d", "FloatLayer", "FloatLinear"]

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class FloatLayer(ABC):
    """A layer with a weight that is not quantized yet.

    Parameters
    ----------
    weight : float32 (rows, ...)
    bias : float32 (rows,) or None
    scheme : QuantScheme or None
        How this layer is quantized; None leaves that to `calibrate`.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None
    scheme: QuantScheme | None = None

    @abstractmethod
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer on float32."""

    @abstractmethod
    def quantize(self, scheme: QuantScheme, input_range: Range | None, output_range: Range | None) -> Layer:
        """Make the layer of integers."""


@dataclass(frozen=True, eq=False)
class FloatLinear(FloatLayer):
    """``y = x @ w.T + bias``, weight (out_features, in_features)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer."""
        y = x @ self.weight.T
        return np.asarray(y if self.bias is None else y + self.bias, np.float32)

    def quantize(self, scheme: QuantScheme, input_range: Range | None, output_range: Range | None) -> Linear:
        """Make the layer of integers."""
        return Linear.quantize(self.weight, self.bias, scheme, input_range=input_range, output_range=output_range)


@dataclass(frozen=True, eq=False)
class FloatConv2d(FloatLayer):
    """A convolution, weight (filters, channels / groups, kernel height, kernel width).

    Parameters
    ----------
    geometry : Geometry
        See `Conv2d.quantize`.
    """

    geometry: Geometry = field(default_factory=Geometry)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer."""
        y = convolve_floats(x, self.weight, convolution_of(self.weight.shape, self.geometry))
        return y if self.bias is None else y + self.bias[:, None, None]

    def quantize(self, scheme: QuantScheme, input_range: Range | None, output_range: Range | None) -> Conv2d:
        """Make the layer of integers."""
        return Conv2d.quantize(
            self.weight, self.bias, scheme, input_range=input_range, output_range=output_range, **self.geometry
        )


@dataclass(frozen=True, eq=False)
class FloatConv1d(FloatLayer):
    """A convolution, weight (filters, channels / groups, kernel).

    Parameters
    ----------
    geometry : Geometry
        See `Conv1d.quantize`.
    """

    geometry: Geometry = field(default_factory=Geometry)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer."""
        weight = self.weight[:, :, None]
        y = convolve_floats(x[:, :, None], weight, convolution_of(weight.shape, flat_geometry(self.geometry)))[:, :, 0]
        return y if self.bias is None else y + self.bias[:, None]

    def quantize(self, scheme: QuantScheme, input_range: Range | None, output_range: Range | None) -> Conv1d:
        """Make the layer of integers."""
        return Conv1d.quantize(
            self.weight, self.bias, scheme, input_range=input_range, output_range=output_range, **self.geometry
        )
