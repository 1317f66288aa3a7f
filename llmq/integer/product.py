"""What layers that multiply have in common: integers in, 32-bit sums, a bias, floats or integers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from llmq.integer.activations import ActivationGrid, Quantized
from llmq.integer.weights import LayerWeight, quantize_weight
from llmq.spec import QuantScheme
from llmq_kernels.integer_layers import InputGrid, RowScales
from llmq_kernels.requantize import (
    bias_codes,
    dequantize_outputs,
    dequantize_outputs_reference,
    fixed_point,
    requantize,
    requantize_reference,
)

__all__ = ["BIAS_LIMIT", "Grids", "ProductLayer", "quantized_parts"]

BIAS_LIMIT: Final = 2.0**30
"""Largest magnitude of a bias; sums of products take as much again, so that both together hold in 32 bits."""

_LEAST_FACTOR: Final = 2.0**-31
"""Least factor of `fixed_point`."""


@dataclass(frozen=True, eq=False)
class Grids:
    """How a layer's activations become integers.

    Parameters
    ----------
    input : ActivationGrid or None
        None multiplies floats by the values of the weight.
    output : ActivationGrid or None
        None gives floats.
    """

    input: ActivationGrid | None
    output: ActivationGrid | None = None


@dataclass(frozen=True, eq=False)
class ProductLayer(ABC):
    """A layer that multiplies by a weight; see `Linear` and `Conv2d`.

    With integers ``sums = sum (x - zero_point) * w`` in int32, and the bias is ``round(bias / (s_x * s_w))``, int32.
    The result is ``(sums + bias) * (s_x * s_w)``, or goes on as int8 by a fixed-point multiplier. A weight in groups
    has several scales a row: the results of its groups are added in their order, and the bias last, in float32.

    Where inputs are static, the scale of a row is never so small that its bias would not hold in 31 bits: weights that
    are that much smaller lose precision, at most 2**-30 of the bias. Where they are dynamic, what exceeds 31 bits of
    the bias is added in float32.

    Parameters
    ----------
    weight : LayerWeight
    bias : float32 (rows,) or None
    grids : Grids

    Raises
    ------
    ValueError
        A bias that does not fit the weight or is not finite, rows too long for 32-bit sums, or integer results that
        cannot be.
    """

    weight: LayerWeight
    bias: np.ndarray | None
    grids: Grids

    def __post_init__(self) -> None:
        bias, weight, given = self.bias, self.weight, self.grids.input
        if bias is not None and (bias.shape != (weight.rows,) or bias.dtype != np.float32):
            raise ValueError(f"bias must be float32 of shape ({weight.rows},), not {bias.dtype} of {bias.shape}")
        if bias is not None and not np.isfinite(bias).all():
            raise ValueError("bias must be finite, not NaN or infinite")
        if self.grids.output is not None:
            if given is None or given.scale is None or len(weight.parts) > 1:
                raise ValueError("integer results need a static input, and one scale for each row of the weight")
            if (weight.scale < 0).any():
                raise ValueError("integer results need positive scales of the weight")
            _ = self._fixed
        bits = weight.spec.bits
        largest = 1 << (bits - 1) if weight.spec.symmetric else (1 << bits) - 1
        if given is not None and bias is not None and weight.columns * 255 * largest >= BIAS_LIMIT:
            raise ValueError(f"32-bit sums do not hold {weight.columns} products of {bits} bits and a bias")

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer.

        Parameters
        ----------
        x : float32, or Quantized
            Integers are taken as they are, if they are of the layer's own input grid.

        Returns
        -------
        float32, or Quantized where the layer has an output grid

        Raises
        ------
        TypeError, ValueError
            A shape that does not fit, integers of another grid, or values that are not finite where their range is
            found at run time; static ranges clip infinity, and NaN becomes the lowest code.
        """
        return self._run(x if isinstance(x, Quantized) else np.asarray(x), reference=False)

    def reference(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Specify the layer in plain NumPy, with sums in int64."""
        return self._run(x if isinstance(x, Quantized) else np.asarray(x), reference=True)

    def integer_forward(self, x: Quantized) -> np.ndarray:
        """Sums of products without the bias, int32; float32 results have more than one scale where there are groups.

        Raises
        ------
        ValueError
            The weight is in groups, or a shape that does not fit.
        """
        if len(self.weight.parts) > 1:
            raise ValueError(f"a weight in {len(self.weight.parts)} groups has as many sums")
        return self._sums(x, 0, reference=False)

    @abstractmethod
    def _sums(self, x: Quantized, part: int, *, reference: bool) -> np.ndarray:
        """Sums of products (n, rows, ...) of one part of the weight: int32, or int64 by the reference."""

    @abstractmethod
    def _layer(self, x: np.ndarray, grid: InputGrid, scales: RowScales) -> np.ndarray:
        """Run a layer of one part on float32 in one go, (n, rows, ...)."""

    @abstractmethod
    def _multiply_floats(self, x: np.ndarray) -> np.ndarray:
        """Product of float32 inputs and the values of the weight, (n, rows, ...)."""

    def _run(self, x: np.ndarray | Quantized, *, reference: bool) -> np.ndarray | Quantized:
        grid = self.grids.input
        if grid is None:
            if isinstance(x, Quantized):
                raise ValueError("integers came in, but the layer multiplies floats")
            product = self._multiply_floats(_floats(x))
            return product if self.bias is None else product + _along(self.bias, product.ndim)
        if isinstance(x, Quantized):
            grid.expects(x)
        elif not reference and self._at_once:
            return self._run_at_once(_floats(x), grid)
        else:
            encode = grid.encode_reference if reference else grid.encode
            x = encode(_floats(x))
        if len(self.weight.parts) > 1:
            return self._add_groups(x, reference=reference)
        sums = self._sums(x, 0, reference=reference)
        if self.bias is None:
            return self._finished(sums, x.scale, None, reference=reference)
        codes, rest = self._bias_codes(x.scale) if grid.scale is None else self.static_bias
        own = codes[0] if len(codes) == 1 else None
        if own is None:
            # Every token has a scale of its own, and so codes of the bias.
            sums = sums + codes.reshape(codes.shape + (1,) * (sums.ndim - 2))
        result = self._finished(sums, x.scale, own, reference=reference)
        if isinstance(result, Quantized) or not rest.any():
            return result
        return np.asarray(result + rest.reshape(rest.shape + (1,) * (sums.ndim - 2)))

    @cached_property
    def _at_once(self) -> bool:
        """Whether floats become floats with the same numbers for all tokens, which kernels do in one go."""
        assert self.grids.input is not None
        own_bias = self.bias is not None and self.grids.input.spec.strategy == "token"
        return self.grids.output is None and len(self.weight.parts) == 1 and not own_bias

    def _run_at_once(self, x: np.ndarray, grid: ActivationGrid) -> np.ndarray:
        inputs = grid.input_grid(x)
        if self.bias is None:
            return self._layer(x, inputs, self._row_scales)
        if grid.scale is None:
            codes, rest = self._bias_codes(inputs.scale)
            scales = RowScales(self.weight.scale[:, 0], codes[0])
        else:
            (_, rest), scales = self.static_bias, self._row_scales
        result = self._layer(x, inputs, scales)
        return result + _along(rest[0], result.ndim) if rest.any() else result

    def _finished(
        self, sums: np.ndarray, x_scale: np.ndarray, bias: np.ndarray | None, *, reference: bool
    ) -> np.ndarray | Quantized:
        if self.grids.output is not None:
            return self._requantized(sums, bias, reference=reference)
        scale = dequantize_outputs_reference if reference else dequantize_outputs
        return np.asarray(scale(sums, x_scale, self.weight.scale[:, 0], bias))

    def _requantized(self, sums: np.ndarray, bias: np.ndarray | None, *, reference: bool) -> Quantized:
        output = self.grids.output
        assert output is not None
        assert output.scale is not None
        assert output.zero_point is not None
        half = 1 << (output.spec.bits - 1)
        scale = requantize_reference if reference else requantize
        codes = scale(sums, *self._fixed, bias=bias, zero_point=int(output.zero_point), limits=(-half, half - 1))
        return Quantized(codes, output.scale, output.zero_point, output.spec.bits)

    @cached_property
    def _fixed(self) -> tuple[np.ndarray, np.ndarray]:
        """Multiplier and shift of each row of integer results."""
        return fixed_point(self._factors())

    def _factors(self) -> np.ndarray:
        """Steps of the output grid that a sum of one takes, float64 (rows,)."""
        given, output = self.grids.input, self.grids.output
        assert given is not None
        assert given.scale is not None
        assert output is not None
        assert output.scale is not None
        return np.float64(given.scale) * self.weight.scale[:, 0].astype(np.float64) / np.float64(output.scale)

    def _add_groups(self, x: Quantized, *, reference: bool) -> np.ndarray:
        scale = dequantize_outputs_reference if reference else dequantize_outputs
        total = None
        for part in range(len(self.weight.parts)):
            value = scale(self._sums(x, part, reference=reference), x.scale, self.weight.scale[:, part])
            total = value if total is None else total + value
        assert total is not None
        return np.asarray(total if self.bias is None else total + _along(self.bias, total.ndim))

    @cached_property
    def _row_scales(self) -> RowScales:
        """Scales of the rows, and the bias of static inputs: what stays the same from call to call."""
        static = self.bias is not None and self.grids.input is not None and self.grids.input.scale is not None
        return RowScales(self.weight.scale[:, 0], self.static_bias[0][0] if static else None)

    @cached_property
    def static_bias(self) -> tuple[np.ndarray, np.ndarray]:
        """Bias of static inputs as int32, and what does not hold in its bits as float32: (1, rows)."""
        assert self.grids.input is not None
        assert self.grids.input.scale is not None
        return self._bias_codes(self.grids.input.scale)

    def _bias_codes(self, x_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bias as int32, and what does not hold in its bits as float32: (1, rows), or (n, rows) for scales by token."""
        assert self.bias is not None
        return bias_codes(self.bias, x_scale, self.weight.scale[:, 0], BIAS_LIMIT)


def quantized_parts(
    weight: np.ndarray,
    bias: np.ndarray | None,
    scheme: QuantScheme,
    ranges: tuple[tuple[float, float] | None, tuple[float, float] | None],
) -> tuple[LayerWeight, np.ndarray | None, Grids]:
    """Quantize what a layer is made of; `ranges` are those of its input and its output.

    Raises
    ------
    ValueError
        A bias that does not fit the weight, NaN or infinity, a missing range, rows too long for 32-bit sums, or a
        scheme that cannot be.
    """
    if not isinstance(scheme, QuantScheme):
        raise TypeError(f"scheme must be a QuantScheme, not {type(scheme).__name__}")
    rows = weight.shape[0]
    if bias is not None:
        bias = np.ascontiguousarray(bias, np.float32)
        # Scales are chosen for it.
        if bias.shape != (rows,):
            raise ValueError(f"bias must be of shape ({rows},), not {bias.shape}")
        if not np.isfinite(bias).all():
            raise ValueError("bias must be finite, not NaN or infinite")
    given, wanted = ranges
    output = None if scheme.output is None else ActivationGrid.of(scheme.output, wanted, "output")
    grid = None if scheme.input is None else ActivationGrid.of(scheme.input, given)
    if wanted is not None and output is None:
        raise ValueError("output_range: the scheme has no output, so that results stay in floating point")
    grids = Grids(grid, output)
    spec = scheme.weight
    by_group = spec.strategy == "group" and spec.group_size != -1
    packed = quantize_weight(weight, spec, None if by_group else _least_weight_scale(bias, grids, rows))
    return packed, bias, grids


def _least_weight_scale(bias: np.ndarray | None, grids: Grids, rows: int) -> np.ndarray | None:
    """Scales of rows from which their bias holds in its bits and their results can be requantized."""
    if grids.input is None or grids.input.scale is None:
        return None
    s_x = np.float64(grids.input.scale)
    least = np.zeros(rows) if bias is None else np.abs(bias) / (s_x * BIAS_LIMIT)
    if grids.output is not None and grids.output.scale is not None:
        least = np.maximum(least, _LEAST_FACTOR * np.float64(grids.output.scale) / s_x)
    return np.nextafter(least.astype(np.float32), np.float32(np.inf))


def _floats(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.float32 and x.flags.c_contiguous:
        return x  # what nearly every call comes to
    if x.dtype.kind != "f":
        raise TypeError(f"x must be float32, not {x.dtype}")
    return np.ascontiguousarray(x, np.float32)


def _along(bias: np.ndarray, ndim: int) -> np.ndarray:
    """Let a value for each row broadcast against (n, rows, ...)."""
    return bias.reshape((-1,) + (1,) * (ndim - 2))
