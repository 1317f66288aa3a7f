"""What a quantization method is: weight rows in, quantized rows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llmq.spec import FLOAT_DTYPES, QuantizedTensor, QuantSpec
from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix
from llmq_kernels.quantize import quantize as encode

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics

__all__ = ["Method", "Needs", "Quantize", "encode_rows", "energy_of", "kernel_grid", "quantized"]


Needs = Literal["nothing", "energy", "moments", "block"]


class Quantize(Protocol):
    """Chooses scales, zero points and codes for some rows of a weight.

    Rows never depend on each other, so that a tensor of any size is quantized block by block.
    """

    def __call__(
        self, weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None
    ) -> QuantizedTensor:
        """Quantize `weight`, float16, bfloat16 or float32 (rows, in_features), by a resolved `spec`.

        `statistics` is what calibration found for this weight; methods that need none ignore it. NaN or infinity
        raises FloatingPointError.
        """
        ...


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Parameters
    ----------
    quantize : Quantize
    needs : {"nothing", "energy", "moments", "block"}
        What it must be given of the statistics; "nothing" for a method that needs no data, "block" for one that begins
        with `gptq` and trains the block: `quantize` refuses a single weight.
    """

    quantize: Quantize
    needs: Needs = "nothing"

    @property
    def whole_moments(self) -> bool:
        """Whether calibration must keep all second moments of the inputs, not their diagonals alone."""
        return self.needs in ("moments", "block")


def energy_of(statistics: InputStatistics | None) -> np.ndarray:
    """Energies of a weight's inputs; ValueError without statistics."""
    if statistics is None:
        raise ValueError("this method needs statistics of the weight's inputs, from calibration")
    return statistics.energy


def kernel_grid(spec: QuantSpec) -> Grid:
    """`spec`, resolved, in the words of the kernels."""
    assert spec.group_size > 0
    assert spec.scale_dtype is not None
    return Grid(
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
        narrow=spec.range == "narrow",
        signed=spec.signed_scale,
        scale_kind=SCALE_KINDS[spec.scale_dtype],
    )


def encode_rows(
    weight: np.ndarray, spec: QuantSpec, scale: np.ndarray, zero_point: np.ndarray | None
) -> QuantizedTensor:
    """Round `weight` to the grid of the given scales and pack the codes.

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, in_features)
    spec : QuantSpec
        Resolved.
    scale : uint16 (rows, n_groups), twice as wide for float32
        Bits of the scales.
    zero_point : uint8 (rows, n_groups) or None
    """
    return quantized(encode(weight, kernel_grid(spec), scale, zero_point), spec)


def quantized(matrix: PackedMatrix, spec: QuantSpec) -> QuantizedTensor:
    """Rows as kernels return them, with the spec that they were quantized by."""
    return QuantizedTensor(
        spec=spec,
        shape=(matrix.rows, matrix.columns),
        packed=matrix.packed,
        scale=matrix.scale.view(FLOAT_DTYPES[str(spec.scale_dtype)]),
        zero_point=matrix.zero_point,
    )
