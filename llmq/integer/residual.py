"""Sums of two branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmq.integer.activations import ActivationGrid, Quantized
from llmq_kernels.requantize import fixed_point

if TYPE_CHECKING:
    from typing import Self

    from llmq.spec import QuantSpec

__all__ = ["Add"]


@dataclass(frozen=True, eq=False)
class Add:
    """``a + b`` of floats or integers; made by `Add.quantize` where integers are to go on.

    Of integers ``zero_point + round((a - z_a) * (s_a / s) + (b - z_b) * (s_b / s))``: both factors as fixed-point
    numbers of at least 2**-31 with the same shift, and one rounding, halves to even.

    Parameters
    ----------
    output : ActivationGrid or None
        None gives floats.
    """

    output: ActivationGrid | None = None

    @classmethod
    def quantize(cls, spec: QuantSpec, output_range: tuple[float, float]) -> Self:
        """Make a layer that gives integers of a spec, with the range that calibration found."""
        return cls(ActivationGrid.of(spec, output_range, "output"))

    def __call__(self, a: np.ndarray | Quantized, b: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Add two arrays of one shape.

        Raises
        ------
        ValueError
            Shapes that differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"branches have shapes {a.shape} and {b.shape}")
        if self.output is not None and isinstance(a, Quantized) and isinstance(b, Quantized):
            return self._add_codes(a, b)
        left, right = (x.dequantize() if isinstance(x, Quantized) else x for x in (a, b))
        total = np.asarray(left + right, np.float32)
        return total if self.output is None else self.output.encode(total)

    def _add_codes(self, a: Quantized, b: Quantized) -> Quantized:
        output = self.output
        assert output is not None
        assert output.scale is not None
        assert output.zero_point is not None
        factors = np.array([np.float64(x.scale) / np.float64(output.scale) for x in (a, b)])
        multipliers, shifts = fixed_point(np.maximum(factors, 2.0**-31))
        # The smaller factor gives up bits for the larger one's shift.
        shift = int(shifts.min())
        left, right = (int(m) >> (int(s) - shift) for m, s in zip(multipliers, shifts, strict=True))
        total = a.centred().astype(np.int64) * left + b.centred().astype(np.int64) * right
        whole, rest = total >> shift, total & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        whole += (rest > half) | ((rest == half) & (whole & 1 == 1))
        limit = 1 << (output.spec.bits - 1)
        codes = np.clip(whole + int(output.zero_point), -limit, limit - 1).astype(np.int8)
        return Quantized(codes, output.scale, output.zero_point, output.spec.bits)
