"""Random packed matrices, together larger than any cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from llmq.errors import ResourceError
from llmq_kernels.layout import SCALE_KINDS, PackedMatrix, row_bytes
from llmq_kernels.scratch import aligned_zeros

__all__ = ["Packing", "RandomWeights"]

_ALIGNMENT: Final = 64
_PATTERN: Final = 1 << 26

_ONE: Final = {"float16": 0x3C00, "bfloat16": 0x3F80, "float32": 0x3F80}
"""The upper 16 bits of 1.0."""


@dataclass(frozen=True)
class Packing:
    """How matrices are packed; see `PackedMatrix`."""

    bits: int
    group_size: int
    symmetric: bool = True
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @property
    def name(self) -> str:
        """Such as `4-bit g64`."""
        return f"{self.bits}-bit g{self.group_size}" + ("" if self.symmetric else " asymmetric")

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """Bytes of the codes, scales and zero points of a matrix (rows, columns)."""
        rows, columns = shape
        groups = rows * (columns // self.group_size)
        scale_bytes = 4 if self.scale_dtype == "float32" else 2
        return rows * row_bytes(columns, self.bits), groups * scale_bytes, 0 if self.symmetric else groups


def _noise(nbytes: int) -> np.ndarray:
    """Make random bytes, aligned as the tensors of a file are."""
    try:
        made = aligned_zeros((nbytes,))
    except (MemoryError, ValueError):
        raise ResourceError(
            "not enough memory for the weights", expected=f"{nbytes} bytes", hint="a smaller --working-set"
        ) from None
    pattern = np.random.default_rng(0).integers(0, 256, min(nbytes, _PATTERN), np.uint8)
    for start in range(0, nbytes, pattern.size):
        made[start : start + pattern.size] = pattern[: nbytes - start]
    return made


class RandomWeights:
    """Memory full of noise, which is cut into matrices of whatever packing is to be measured.

    Parameters
    ----------
    nbytes : int

    Raises
    ------
    ResourceError
        Not so much memory.
    """

    def __init__(self, nbytes: int) -> None:
        self._bytes = _noise(nbytes)

    def cut(self, shape: tuple[int, int], packing: Packing) -> tuple[np.ndarray, list[PackedMatrix]]:
        """As many matrices as there is room for, at least one, and the bytes that they lie in, one after the other.

        Scales are ones and codes noise; the bytes of earlier matrices are overwritten.

        Raises
        ------
        ValueError
            A group size that does not divide the columns, or a width out of range.
        """
        sizes = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in packing.sizes(shape)]
        step = sum(sizes)
        if step > self._bytes.size:
            self._bytes = _noise(step)
        count = self._bytes.size // step
        matrices = [self._matrix(i * step, sizes, shape, packing) for i in range(count)]
        return self._bytes[: count * step], matrices

    def _matrix(self, start: int, sizes: list[int], shape: tuple[int, int], packing: Packing) -> PackedMatrix:
        rows, columns = shape
        places = (start, start + sizes[0], start + sizes[0] + sizes[1])
        parts = [self._bytes[a : a + n].reshape(rows, -1) for a, n in zip(places, packing.sizes(shape), strict=True)]
        scale = parts[1].view(np.uint16)
        scale[:] = _ONE[packing.scale_dtype]
        if packing.scale_dtype == "float32":
            scale[:, ::2] = 0
        parts[2] &= (1 << packing.bits) - 1
        return PackedMatrix(
            packed=parts[0],
            scale=scale,
            zero_point=None if packing.symmetric else parts[2],
            bits=packing.bits,
            group_size=packing.group_size,
            columns=columns,
            scale_kind=SCALE_KINDS[packing.scale_dtype],
        )
