"""`IntegerWeight`: packed codes that stand for integers, one zero point for each row."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.layout import row_bytes
from llmq_kernels.pack import pack, unpack

__all__ = ["IntegerWeight"]

_MOST_INPUT = 255
"""Largest magnitude of an int8 minus its zero point."""


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A matrix of integers, `code - zero_point`, as packed codes; checked once, when made.

    The scales of its rows are no part of it: sums of integers are scaled by `dequantize_outputs` or `requantize`.

    Parameters
    ----------
    packed : uint8 (rows, row_bytes(columns, bits))
        Little-endian bit stream of unsigned codes (`llmq_kernels.layout`).
    bits : int
        Width of a code, 1 to 8.
    columns : int
        Elements of a row. At most `(2**31 - 1) // (255 * m)` for integers up to `m` in magnitude, so that sums of
        products with int8 inputs hold in 32 bits: 33,025 at 8 bits, 65,793 if symmetric.
    zero_point : uint8 (rows,) or None
        Codes that stand for zero; None means symmetric: `2**(bits-1)`. One bit, symmetric, is the sign grid, and its
        integers are `2 * code - 1`.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A width, shape or zero point out of range, or too many columns.
    """

    packed: np.ndarray
    bits: int
    columns: int
    zero_point: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the fields alone: what is kept with a weight has addresses of its arrays."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {self.bits}")
        if self.packed.dtype != np.uint8:
            raise TypeError(f"packed must be uint8, not {self.packed.dtype}")
        width = row_bytes(self.columns, self.bits)
        if self.columns < 1 or self.packed.ndim != 2 or self.packed.shape[1] != width:
            raise ValueError(f"packed must have shape (rows, {width}), not {self.packed.shape}")
        if not (self.packed.flags.c_contiguous and self.packed.flags.aligned):
            raise ValueError("packed must be C-contiguous and aligned")
        if self.zero_point is not None:
            self._check_zero_point(self.zero_point)
        most = (2**31 - 1) // (_MOST_INPUT * self._magnitude())
        if self.columns > most:
            raise ValueError(f"32-bit sums hold at most {most} columns of such a weight, not {self.columns}")

    def _check_zero_point(self, zero_point: np.ndarray) -> None:
        if zero_point.dtype != np.uint8:
            raise TypeError(f"zero_point must be uint8, not {zero_point.dtype}")
        if zero_point.shape != (self.rows,):
            raise ValueError(f"zero_point must have shape ({self.rows},), not {zero_point.shape}")
        if zero_point.size and int(zero_point.max()) >> self.bits:
            raise ValueError(f"zero_point must be 0 to {2**self.bits - 1}, found {int(zero_point.max())}")

    def _magnitude(self) -> int:
        """Largest magnitude of an integer."""
        if self.zero_point is None:
            return 1 << (self.bits - 1)
        points = [int(n) for n in (self.zero_point.min(), self.zero_point.max())] if self.rows else [0, 0]
        return max(points[1], (1 << self.bits) - 1 - points[0])

    @classmethod
    def of(cls, codes: np.ndarray, bits: int, zero_point: np.ndarray | None = None) -> IntegerWeight:
        """Pack codes, uint8 (rows, columns).

        Examples
        --------
        >>> IntegerWeight.of(np.array([[0, 7, 15]], np.uint8), 4).integers().tolist()
        [[-8, -1, 7]]
        >>> IntegerWeight.of(np.array([[0, 1]], np.uint8), 1).integers().tolist()
        [[-1, 1]]
        """
        return cls(pack(codes, bits), bits, codes.shape[1], zero_point)

    @property
    def view(self) -> np.ndarray:
        """The packed codes as kernels read them."""
        return frozen(self.packed)

    @property
    def rows(self) -> int:
        """Number of rows (`out_features`, or filters)."""
        return int(self.packed.shape[0])

    def integers(self) -> np.ndarray:
        """Return what the codes stand for, int16 (rows, columns)."""
        codes = unpack(self.packed, self.bits, self.columns).astype(np.int16)
        factor, offset = self.form()
        return np.int16(factor) * codes - offset[:, None].astype(np.int16)

    def form(self) -> tuple[int, np.ndarray]:
        """Return `factor` and int32 `offset` (rows,) of `integer = factor * code - offset`."""
        if self.zero_point is not None:
            return 1, self.zero_point.astype(np.int32)
        if self.bits == 1:
            return 2, np.ones(self.rows, np.int32)
        return 1, np.full(self.rows, 1 << (self.bits - 1), np.int32)
