"""Whole layers of integers in one go: floats in, rounded to int8, multiplied, scaled, floats out.

They give what `quantize_inputs`, `integer_matmul` or `integer_convolve`, and `dequantize_outputs` give one after the
other, to the last bit, without the arrays in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmq_kernels.convolution import images_of, integer_convolve, integer_convolve_reference
from llmq_kernels.convolution_product import convolve_images
from llmq_kernels.doors import matrix_of, output_of, vector_of
from llmq_kernels.inputs import (
    checked_parameters,
    input_vectors,
    quantize_inputs,
    quantize_inputs_reference,
)
from llmq_kernels.integer import integer_matmul, integer_matmul_reference
from llmq_kernels.integer_product import multiply_tokens
from llmq_kernels.jit import jit_enabled
from llmq_kernels.requantize import dequantize_outputs, dequantize_outputs_reference
from llmq_kernels.row_forms import RowForms

if TYPE_CHECKING:
    from llmq_kernels.convolution import Convolution
    from llmq_kernels.integer_weight import IntegerWeight

__all__ = [
    "InputGrid",
    "RowScales",
    "convolution_layer",
    "convolution_layer_reference",
    "linear_layer",
    "linear_layer_reference",
]


@dataclass(frozen=True, eq=False)
class InputGrid:
    """How inputs become int8: ``x ~ scale * (code - zero_point)``; see `quantize_inputs`. Neither array may change.

    Parameters
    ----------
    scale : float32 () or (n,)
        Of everything, or of each item of the first axis.
    zero_point : int32 () or (n,)
    bits : int
        2 to 8.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int = 8

    @classmethod
    def found(cls, x: np.ndarray, bits: int = 8, *, symmetric: bool = False, per_row: bool = False) -> InputGrid:
        """Find the grid of inputs at run time; parameters and errors are those of `input_parameters`."""
        made = input_vectors(x, bits, symmetric=symmetric, per_row=per_row)
        grid = cls(*made, bits) if per_row else cls(made[0][:1].reshape(()), made[1][:1].reshape(()), bits)
        grid.__dict__["_made"] = made
        return grid

    def vectors(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scales, float32, and zero points, int32, of `count` items; kept, for mostly it is the same count again.

        Raises
        ------
        TypeError, ValueError
            See `checked_parameters`.
        """
        made: tuple[np.ndarray, np.ndarray] | None = self.__dict__.get("_made")
        if made is None or made[0].size != count:
            made = checked_parameters(self.scale, self.zero_point, self.bits, count)
            self.__dict__["_made"] = made
        return made


@dataclass(frozen=True, eq=False)
class RowScales:
    """What sums of a weight's rows are scaled by; see `dequantize_outputs`. Neither array may change.

    Parameters
    ----------
    scale : float32 (rows,)
        Of the integers of each row.
    bias : int32 or float32 (rows,), optional
        Int32 is added to the sums, with which it must hold in 32 bits; float32 after scaling.
    """

    scale: np.ndarray
    bias: np.ndarray | None = None

    def numbers(self, weight: IntegerWeight) -> np.ndarray:
        """Return what `RowForms.filled` makes of them for a weight; kept, for mostly it is the same weight again.

        Raises
        ------
        TypeError, ValueError
            They do not fit the rows of the weight.
        """
        made: tuple[IntegerWeight, np.ndarray] | None = self.__dict__.get("_made")
        if made is None or made[0] is not weight:
            made = weight, RowForms.of(weight).filled(*self.vectors(weight.rows))
            self.__dict__["_made"] = made
        return made[1]

    def vectors(self, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scales and bias of rows as vectors.

        Raises
        ------
        TypeError, ValueError
            Neither one nor as many as there are rows, or of another kind.
        """
        scale = vector_of("scale", self.scale, rows, np.float32)
        if self.bias is None:
            return scale, None
        exact = np.asarray(self.bias).dtype == np.int32
        return scale, vector_of("bias", self.bias, rows, np.int32 if exact else np.float32)


def linear_layer_reference(x: np.ndarray, weight: IntegerWeight, grid: InputGrid, scales: RowScales) -> np.ndarray:
    """Specify `linear_layer` in plain NumPy.

    Examples
    --------
    >>> from llmq_kernels.integer_weight import IntegerWeight
    >>> weight, grid = IntegerWeight.of(np.array([[3, 1]], np.uint8), 2), InputGrid(np.float32(0.5), np.int32(0))
    >>> linear_layer_reference(np.array([[1.0, 2.5]], np.float32), weight, grid, RowScales(np.float32([2.0]))).tolist()
    [[-3.0]]
    """
    codes = quantize_inputs_reference(x, grid.scale, grid.zero_point, grid.bits)
    sums = integer_matmul_reference(codes, weight, grid.zero_point).astype(np.int32)
    return dequantize_outputs_reference(sums, grid.scale, scales.scale, scales.bias)


def convolution_layer_reference(
    x: np.ndarray, weight: IntegerWeight, geometry: Convolution, grid: InputGrid, scales: RowScales
) -> np.ndarray:
    """Specify `convolution_layer` in plain NumPy.

    Examples
    --------
    >>> from llmq_kernels.convolution import Convolution
    >>> from llmq_kernels.integer_weight import IntegerWeight
    >>> weight, grid = IntegerWeight.of(np.array([[3, 1]], np.uint8), 2), InputGrid(np.float32(0.5), np.int32(0))
    >>> x, scales = np.array([[[[1.0, 2.5, 0.0]]]], np.float32), RowScales(np.float32([2.0]))
    >>> convolution_layer_reference(x, weight, Convolution((1, 2)), grid, scales).tolist()
    [[[[-3.0, 5.0]]]]
    """
    codes = quantize_inputs_reference(x, grid.scale, grid.zero_point, grid.bits)
    sums = integer_convolve_reference(codes, weight, geometry, grid.zero_point).astype(np.int32)
    return dequantize_outputs_reference(sums, grid.scale, scales.scale, scales.bias)


def linear_layer(
    x: np.ndarray, weight: IntegerWeight, grid: InputGrid, scales: RowScales, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Run a fully connected layer of integers on floats.

    Parameters
    ----------
    x : float32 (tokens, columns)
        NaN becomes the lowest code.
    weight : IntegerWeight
        (rows, columns)
    grid : InputGrid
        Of `x`; one scale, or one a token.
    scales : RowScales
    out : float32 (tokens, rows), optional
        Written instead of a new array.

    Returns
    -------
    float32 (tokens, rows)

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or numbers out of range.
    """
    x = matrix_of("x", x, np.float32, weight.columns)
    out = output_of(out, (x.shape[0], weight.rows))
    inputs = (*grid.vectors(x.shape[0]), grid.bits)
    if jit_enabled():
        multiply_tokens(x, weight, inputs, scales.numbers(weight), out)
        return out
    codes = quantize_inputs(x, inputs[0], inputs[1], bits=grid.bits)
    sums = integer_matmul(codes, weight, x_zero_point=inputs[1])
    return dequantize_outputs(sums, inputs[0], *scales.vectors(weight.rows), out=out)


def convolution_layer(
    x: np.ndarray,
    weight: IntegerWeight,
    geometry: Convolution,
    grid: InputGrid,
    scales: RowScales,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Run a convolution of integers on floats.

    Parameters
    ----------
    x : float32 (n, channels, height, width)
        NaN becomes the lowest code.
    weight : IntegerWeight
        (filters, channels / groups * kernel height * kernel width)
    geometry : Convolution
    grid : InputGrid
        Of `x`; one scale, or one an image.
    scales : RowScales
    out : float32 (n, filters, output height, output width), optional
        Written instead of a new array.

    Returns
    -------
    float32 (n, filters, output height, output width)

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other or the geometry, or numbers out of range.
    """
    x = images_of(x, weight, geometry, np.float32)
    out = output_of(out, (x.shape[0], weight.rows, *geometry.output_size(*x.shape[2:])))
    inputs = (*grid.vectors(x.shape[0]), grid.bits)
    if jit_enabled():
        convolve_images(x, weight, geometry, inputs, scales.numbers(weight), out)
        return out
    codes = quantize_inputs(x, inputs[0], inputs[1], bits=grid.bits)
    sums = integer_convolve(codes, weight, geometry, x_zero_point=inputs[1])
    return dequantize_outputs(sums, inputs[0], *scales.vectors(weight.rows), out=out)
