"""Activations as integers: `x ~ scale * (code - zero_point)` with int8 codes, and what makes them of floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.parameters import scale_and_zero_point
from llmq_kernels.inputs import quantize_inputs, quantize_inputs_reference
from llmq_kernels.integer_layers import InputGrid

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["ActivationGrid", "Quantized"]


@dataclass(frozen=True, eq=False)
class Quantized:
    """Activations that flow from one integer layer to the next.

    Parameters
    ----------
    codes : int8 (n, ...)
    scale : float or float32 (n,)
        Of everything, or of each item of the first axis.
    zero_point : int or int32 (n,)
        The code of zero.
    bits : int
        Codes are `-2**(bits-1)` to `2**(bits-1) - 1`.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    bits: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    def with_codes(self, codes: np.ndarray) -> Quantized:
        """Other codes of the same scale."""
        return Quantized(np.ascontiguousarray(codes), self.scale, self.zero_point, self.bits)

    def spread_zero_point(self) -> np.ndarray:
        """The zero point, int32, in a shape that broadcasts against the codes."""
        return _spread(np.asarray(self.zero_point, np.int32), self.codes.ndim)

    def centred(self) -> np.ndarray:
        """Codes minus the zero point, int32."""
        return np.asarray(self.codes.astype(np.int32) - self.spread_zero_point())

    def dequantize(self) -> np.ndarray:
        """The values that the codes stand for, float32."""
        return np.asarray(self.centred().astype(np.float32) * _spread(self.scale, self.codes.ndim), np.float32)


def _spread(values: np.ndarray, ndim: int) -> np.ndarray:
    """Let one value for each item of the first axis broadcast against `ndim` axes."""
    return values.reshape(values.shape + (1,) * (ndim - 1)) if values.ndim else values


@dataclass(frozen=True, eq=False)
class ActivationGrid:
    """How activations become integers.

    Parameters
    ----------
    spec : QuantSpec
        By tensor or token.
    scale : float32 () or None
    zero_point : int32 () or None
        Both known beforehand (static), or both None: found at run time (dynamic).

    Raises
    ------
    ValueError
        A scale or a zero point out of range, or none where the spec is static.
    """

    spec: QuantSpec
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.scale is None, self.zero_point is None) != (self.spec.dynamic,) * 2:
            raise ValueError("a grid has a scale and a zero point, unless its spec is dynamic")
        if self.scale is None or self.zero_point is None:
            return
        scale, zero_point = np.asarray(self.scale, np.float32), np.asarray(self.zero_point)
        half = 1 << (self.spec.bits - 1)
        if scale.shape != () or not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be one number, positive and finite, not {self.scale}")
        if zero_point.shape != () or not -half <= int(zero_point) < half:
            raise ValueError(f"zero_point must be {-half} to {half - 1}, not {self.zero_point}")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point.astype(np.int32))

    @classmethod
    def of(cls, spec: QuantSpec, range_: tuple[float, float] | None, name: str = "input") -> ActivationGrid:
        """Make the grid of a spec and the range that calibration found.

        Raises
        ------
        ValueError
            A static spec without a range, a dynamic one with a range, or what is no range.
        """
        if spec.dynamic:
            if range_ is not None:
                raise ValueError(f"{name}_range: ranges are found at run time where the spec is dynamic")
            return cls(spec)
        if range_ is None:
            raise ValueError(
                f"{name}_range is missing: a static {name} needs a range from calibration (or dynamic=True)"
            )
        # A range of zeros, as of a ReLU that never fired, has no scale of its own: one that is far from any limit.
        ends = np.asarray(range_)
        if ends.shape != (2,) or ends.dtype.kind not in "iuf":
            raise ValueError(f"{name}_range must be two numbers, not {range_!r}")
        low, high = ends.tolist() if ends.any() else (-1.0, 1.0)
        scale, zero_point = scale_and_zero_point(low, high, spec)
        point = 0 if zero_point is None else int(zero_point) - (1 << (spec.bits - 1))
        return cls(spec, np.asarray(scale, np.float32), np.asarray(point, np.int32))

    def encode(self, x: np.ndarray) -> Quantized:
        """Round floats (n, ...) to codes.

        Raises
        ------
        ValueError
            Values that are not finite, of which no range is found at run time.
        """
        grid = self.input_grid(x)
        codes = quantize_inputs(x, grid.scale, grid.zero_point, bits=grid.bits)
        return Quantized(codes, grid.scale, grid.zero_point, grid.bits)

    def encode_reference(self, x: np.ndarray) -> Quantized:
        """Specify `encode`, of ranges that are found alike, in plain NumPy."""
        grid = self.input_grid(x)
        codes = quantize_inputs_reference(x, grid.scale, grid.zero_point, grid.bits)
        return Quantized(codes, grid.scale, grid.zero_point, grid.bits)

    def input_grid(self, x: np.ndarray) -> InputGrid:
        """Scale and zero point for floats (n, ...): known beforehand, or found in them.

        Raises
        ------
        ValueError
            Values that are not finite, of which no range is found at run time.
        """
        if not self.spec.dynamic:
            return self._static
        by_token = self.spec.strategy == "token"
        return InputGrid.found(x, self.spec.bits, symmetric=self.spec.symmetric, per_row=by_token)

    @cached_property
    def _static(self) -> InputGrid:
        assert self.scale is not None
        assert self.zero_point is not None
        return InputGrid(self.scale, self.zero_point, self.spec.bits)

    def expects(self, x: Quantized) -> None:
        """Check that integers which come in are those the layer was made for; ValueError if they are not."""
        if self.scale is None or self.zero_point is None:
            raise ValueError("integers came in, but the layer finds the range of its input at run time")
        if np.ndim(x.scale) or np.ndim(x.zero_point):
            raise ValueError(f"integers with {np.size(x.scale)} scales came in (expected one, {float(self.scale):g})")
        if x.bits != self.spec.bits or x.scale != self.scale or x.zero_point != self.zero_point:
            raise ValueError(
                f"integers of scale {float(x.scale):g} and zero point {int(x.zero_point)} came in (expected "
                f"{float(self.scale):g} and {int(self.zero_point)}, {self.spec.bits} bits)"
            )
