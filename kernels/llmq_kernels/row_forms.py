"""`RowForms`: what turns the sums of a weight's rows into outputs, besides the codes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq_kernels.jit import jit
from llmq_kernels.pack import unpack_columns
from llmq_kernels.simd import target
from llmq_kernels.tiles import tile_rows

if TYPE_CHECKING:
    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["RowForms"]


@jit
def _sum_rows(packed: np.ndarray, bits: int, columns: int, sums: np.ndarray) -> None:
    """Sum the codes of each row."""
    codes = np.empty(columns, np.uint8)
    for row in range(packed.shape[0]):
        unpack_columns(packed, bits, row, 0, columns, codes)
        total = np.int32(0)
        for code in codes:
            total = np.int32(total + np.int32(code))
        sums[row] = total


class RowForms:
    """Numbers of each row of a weight, padded to whole tiles.

    With ``integer = factor * code - offset``, and codes that lose `lost` in tiles, a sum of products with inputs less
    their zero point `z` is ``factor * (sum of codes * x) - shift * (sum of x - columns * z) - z * factor * (sum of
    codes)``, where ``shift = offset - factor * lost``.

    Parameters
    ----------
    weight : IntegerWeight

    Attributes
    ----------
    factor : int
    numbers : int32 (5, rows)
        What the sum of inputs is multiplied by; what their zero point is; a constant, to be filled in; two float32,
        likewise: what the finished sum is multiplied by, beside the input's scale, and what is added then.
    """

    def __init__(self, weight: IntegerWeight) -> None:
        goal = target()
        lost = goal.offset(weight.bits)
        self.factor, offset = weight.form()
        rows = -(-weight.rows // tile_rows(goal)) * tile_rows(goal)
        self.numbers = np.zeros((5, rows), np.int32)
        sums = np.zeros(weight.rows, np.int32)
        _sum_rows(weight.view, weight.bits, weight.columns, sums)
        self.numbers[0, : weight.rows] = self.factor * lost - offset
        self.numbers[1, : weight.rows] = -self.factor * (sums - lost * weight.columns)
        self.numbers[4] = np.float32(-0.0).view(np.int32)  # changes no sum, not even minus zero

    @staticmethod
    def of(weight: IntegerWeight) -> RowForms:
        """Numbers of a weight, made once and kept with it."""
        kept = weight.__dict__
        if "_forms" not in kept:
            kept["_forms"] = RowForms(weight)
        forms: RowForms = kept["_forms"]
        return forms

    def filled(self, w_scale: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """Return the numbers with scales, float32 (rows,), and bias, float32 or int32 (rows,), of a layer."""
        numbers = self.numbers.copy()
        numbers[3, : w_scale.size] = w_scale.view(np.int32)
        if bias is not None:
            numbers[2 if bias.dtype == np.int32 else 4, : bias.size] = bias.view(np.int32)
        return numbers
