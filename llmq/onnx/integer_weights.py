"""Weights of integer layers as initializers: codes in the narrowest ONNX type, scales and zero points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llmq_kernels.pack import unpack

if TYPE_CHECKING:
    from llmq.integer import LayerWeight
    from llmq.onnx.integer_graph import Graph

__all__ = ["WeightCodes"]


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A weight as ONNX stores it: ``w = scale * (code - zero_point)``.

    Parameters
    ----------
    codes : uint8 or int8 (rows, columns)
    zero_point : the same dtype (rows, parts)
    scale : float32 (rows, parts)
    bits : int
        Width that holds the codes: 2, 4 or 8.
    shape : tuple of int
        Of the weight.
    """

    codes: np.ndarray
    zero_point: np.ndarray
    scale: np.ndarray
    bits: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: LayerWeight, graph: Graph, *, signed: bool | None = None) -> WeightCodes:
        """Take the codes of a weight, unsigned as they are, or signed: symmetric ones then have the zero point 0."""
        parts = weight.parts
        codes = np.concatenate([unpack(p.packed, p.bits, p.columns) for p in parts], axis=1).astype(np.int16)
        factor = parts[0].form()[0]
        points = np.stack([p.form()[1] for p in parts], axis=1).astype(np.int16)
        # The sign grid has integers -1 and 1: codes 0 and 2 around 1.
        stored = graph.packed_bits(2 if factor == 2 else weight.spec.bits)
        codes *= factor
        negative = graph.signed if signed is None else signed
        middle = int(points[0, 0]) if weight.spec.symmetric else 1 << (stored - 1)
        shift, dtype = (middle, np.int8) if negative else (0, np.uint8)
        return cls((codes - shift).astype(dtype), (points - shift).astype(dtype), weight.scale, stored, weight.shape)

    @cached_property
    def integers(self) -> np.ndarray:
        """Codes minus zero points, int32 (rows, columns)."""
        points = np.repeat(self.zero_point.astype(np.int32), self.group_size, axis=1)
        return np.asarray(self.codes.astype(np.int32) - points)

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    @property
    def one_scale(self) -> bool:
        """Whether all rows share a scale and a zero point."""
        return bool((self.scale == self.scale[0, 0]).all()) and self.one_zero_point

    @property
    def one_zero_point(self) -> bool:
        """Whether all rows and groups share a zero point."""
        return bool((self.zero_point == self.zero_point[0, 0]).all())

    def with_one_zero_point(self) -> WeightCodes | None:
        """The same integers around one zero point, if 8 bits hold them."""
        if self.one_zero_point:
            return self
        limits = np.iinfo(self.codes.dtype)
        low, high = int(self.integers.min()), int(self.integers.max())
        if high - low > limits.max - limits.min:
            return None
        codes = (self.integers - low + limits.min).astype(self.codes.dtype)
        points = np.full_like(self.zero_point, limits.min - low)
        return WeightCodes(codes, points, self.scale, 8, self.shape)

    def packed(self, graph: Graph, scope: str) -> str:
        """Add the codes as a tensor of their bits, in the shape of the weight."""
        return graph.packed(f"{scope}/weight", self.codes.reshape(self.shape), self.bits)

    def eight_bits(self, graph: Graph, scope: str, arranged: np.ndarray | None = None) -> str:
        """Add the codes, or an arrangement of them, as a tensor of 8 bits that is stored in fewer where they fit."""
        codes = self.codes.reshape(self.shape) if arranged is None else np.ascontiguousarray(arranged)
        stored = graph.packed(f"{scope}/weight", codes, self.bits)
        return stored if self.bits == 8 else graph.cast(stored, self.codes.dtype, scope)
