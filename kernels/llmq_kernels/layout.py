"""The packed layout of a quantized matrix, and the checks that make it safe to hand to a kernel.

Element `i` of a row occupies bits `[i*b, (i+1)*b)` of the row's little-endian bit stream, low bits first; each
row is padded to whole 32-bit words. For b = 4::

    byte      0          1          2          3
    bits   7654 3210  7654 3210  7654 3210  7654 3210
    code     1    0     3    2     5    4     7    6
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from llmq_kernels.doors import frozen

SCALE_KINDS: Final = {"float16": 0, "bfloat16": 1, "float32": 2}
"""How a scale is encoded in `PackedMatrix.scale`: kernels branch on the number."""


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a packed row: `columns * bits` bits, rounded up to 32-bit words."""
    return 4 * -(-columns * bits // 32)


def midpoint(bits: int) -> float:
    """Zero point of a symmetric grid: `2**(bits-1)`, and one half for the sign grid of one bit."""
    return 0.5 if bits == 1 else float(1 << (bits - 1))


@dataclass(frozen=True)
class Grid:
    """How codes are chosen for the rows of a matrix.

    Parameters
    ----------
    bits : int
        Width of a code, 1 to 8.
    group_size : int
        Columns that share a scale; divides the number of columns.
    symmetric : bool
        Zero point at `midpoint(bits)`, or one stored zero point for each group.
    narrow : bool
        Leave the most negative code of a symmetric grid out.
    signed : bool
        Whether a search may choose negative scales.
    scale_kind : int
        A value of `SCALE_KINDS`: scales are rounded to it before codes are computed.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    narrow: bool = False
    signed: bool = True
    scale_kind: int = SCALE_KINDS["float32"]


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantized matrix as kernels read it: `w = scale * (code - zero_point)`.

    Checked once, when made; every kernel relies on these checks, for Numba checks no bounds.

    Parameters
    ----------
    packed : uint8 (rows, row_bytes(columns, bits))
        Little-endian bit stream of unsigned codes. May be read-only, mapped and unaligned.
    scale : uint16 (rows, n_groups) or (rows, 2 * n_groups)
        Bits of the scales; a float32 scale takes two, low half first.
    zero_point : uint8 (rows, n_groups) or None
        Codes that stand for zero; None means symmetric (`midpoint(bits)`).
    bits : int
        Width of a code, 1 to 8.
    group_size : int
        Columns that share a scale; divides `columns`.
    columns : int
        Elements of a row (`in_features`).
    scale_kind : int
        A value of `SCALE_KINDS`.

    Raises
    ------
    TypeError
        A wrong dtype.
    ValueError
        A shape or width that does not fit the others.
    """

    packed: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bits: int
    group_size: int
    columns: int
    scale_kind: int

    # What kernels are given. They are compiled for read-only arrays alone, for a mapped file is one.
    packed_view: np.ndarray = field(init=False, repr=False)
    scale_view: np.ndarray = field(init=False, repr=False)
    zero_point_view: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, not {self.bits}")
        if self.columns < 1 or self.group_size < 1 or self.columns % self.group_size:
            raise ValueError(f"group size {self.group_size} does not divide {self.columns} columns")
        if self.scale_kind not in SCALE_KINDS.values():
            raise ValueError(f"unknown scale kind {self.scale_kind}")
        words = 2 if self.scale_kind == SCALE_KINDS["float32"] else 1
        n_groups = self.columns // self.group_size
        self._check("packed", self.packed, np.uint8, row_bytes(self.columns, self.bits))
        self._check("scale", self.scale, np.uint16, n_groups * words)
        if self.zero_point is not None:
            self._check("zero_point", self.zero_point, np.uint8, n_groups)
        none = np.zeros((0, 0), np.uint8)
        for name in ("packed", "scale", "zero_point"):
            array = getattr(self, name)
            object.__setattr__(self, f"{name}_view", frozen(none if array is None else array))

    def _check(self, name: str, array: np.ndarray, dtype: type, width: int) -> None:
        if array.dtype != dtype:
            raise TypeError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
        shape = (self.packed.shape[0], width)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"{name} must be C-contiguous and aligned")

    @property
    def rows(self) -> int:
        """Number of rows (`out_features`)."""
        return int(self.packed.shape[0])

    @property
    def views(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Packed codes, scales and zero points, the latter of shape (0, 0) if symmetric: what kernels call `weight`."""
        return self.packed_view, self.scale_view, self.zero_point_view

    @property
    def form(self) -> tuple[int, int, int]:
        """`(bits, group_size, scale_kind)`."""
        return self.bits, self.group_size, self.scale_kind

    @property
    def n_groups(self) -> int:
        """Groups in a row."""
        return self.columns // self.group_size
