"""Weights of integer layers: packed integers, and a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from llmq.observers import quantize_array, range_for, scale_and_zero_point
from llmq_kernels.integer_weight import IntegerWeight

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from llmq.spec import QuantSpec

__all__ = ["LayerWeight", "quantize_weight", "weight_array"]


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A quantized weight, one part for each group of columns; only grouped weights have several.

    Parameters
    ----------
    parts : tuple of IntegerWeight
        (rows, columns of the group)
    scale : float32 (rows, parts)
        ``w = scale * integer``.
    shape : tuple of int
        Of the weight as it was given.
    spec : QuantSpec

    Raises
    ------
    ValueError
        Parts, scales and a shape that do not fit each other, or scales that are not positive and finite.
    """

    parts: tuple[IntegerWeight, ...]
    scale: np.ndarray
    shape: tuple[int, ...]
    spec: QuantSpec

    def __post_init__(self) -> None:
        sizes = {(part.rows, part.bits, part.zero_point is None) for part in self.parts}
        expected = (*self.shape[:1], self.spec.bits, self.spec.symmetric)
        if sizes != {expected} or self.columns != prod(self.shape[1:]):
            raise ValueError(f"packed rows do not make a weight of shape {self.shape} and {self.spec.bits} bits")
        if self.scale.shape != (self.rows, len(self.parts)) or self.scale.dtype != np.float32:
            raise ValueError(
                f"scale must be float32 ({self.rows}, {len(self.parts)}), not {self.scale.dtype} {self.scale.shape}"
            )
        if not (np.isfinite(self.scale) & (self.scale > 0)).all():
            raise ValueError("scale must be positive and finite")

    @property
    def rows(self) -> int:
        """Output features or filters."""
        return self.parts[0].rows

    @property
    def columns(self) -> int:
        """Products that make up an output."""
        return sum(part.columns for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of packed codes, scales and zero points."""
        points = sum(part.zero_point.nbytes for part in self.parts if part.zero_point is not None)
        return sum(part.packed.nbytes for part in self.parts) + self.scale.nbytes + points

    @cached_property
    def values(self) -> np.ndarray:
        """What the integers stand for, float32, in the shape of the weight."""
        parts = [part.integers() * self.scale[:, [i]] for i, part in enumerate(self.parts)]
        return np.concatenate(parts, axis=1).astype(np.float32).reshape(self.shape)


def weight_array(weight: ArrayLike) -> np.ndarray:
    """View a weight as an array; TypeError if it does not hold numbers."""
    found = np.asarray(weight)
    # V: the float dtypes that NumPy does not know.
    if found.dtype.kind not in "fiuV":
        raise TypeError(f"weight must be an array of floats, not {type(weight).__name__} of {found.dtype}")
    return found


def quantize_weight(weight: np.ndarray, spec: QuantSpec, least_scale: np.ndarray | None = None) -> LayerWeight:
    """Quantize a weight: ranges by `spec.observer`, of the tensor, of each row or of each group of a row.

    Parameters
    ----------
    weight : float (rows, ...)
        Everything behind the first axis makes up a row.
    spec : QuantSpec
    least_scale : float32 (rows,), optional
        Scales are at least this.

    Raises
    ------
    ValueError
        An unknown observer, NaN or infinity, or groups that do not divide a row.
    """
    if weight.size == 0:
        raise ValueError(f"a weight of shape {weight.shape} is empty")
    flat = np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)
    rows, columns = flat.shape
    size = columns if spec.strategy != "group" or spec.group_size == -1 else spec.group_size
    if columns % size:
        raise ValueError(f"groups of {size} do not divide rows of {columns}")
    by_group = flat.reshape(-1, size)
    scale, zero_point = _parameters(by_group, spec)
    # Of a range of zeros any scale will do: one that is far from the least float32.
    scale = np.where(np.abs(by_group).max(axis=1) == 0, np.float32(1.0), scale)
    if spec.bits == 1 and spec.symmetric:
        scale = scale / 2
    if least_scale is not None:
        scale = np.maximum(scale, np.repeat(least_scale, columns // size))
    step = scale * 2 if spec.bits == 1 and spec.symmetric else scale
    points = None if zero_point is None else zero_point[:, None]
    codes = quantize_array(by_group, step[:, None], points, spec).reshape(rows, columns // size, size)
    by_row = None if zero_point is None else zero_point.reshape(rows, -1)
    parts = tuple(
        IntegerWeight.of(
            np.ascontiguousarray(codes[:, i]), spec.bits, None if by_row is None else np.ascontiguousarray(by_row[:, i])
        )
        for i in range(columns // size)
    )
    return LayerWeight(parts, np.ascontiguousarray(scale.reshape(rows, -1), np.float32), weight.shape, spec)


def _parameters(rows: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point of each of float32 (rows, n)."""
    whole = spec.strategy == "tensor"
    ranges = range_for(rows, spec if whole else replace(spec, strategy="channel"))
    scale, zero_point = scale_and_zero_point(*ranges, spec)
    if not whole:
        return scale, zero_point
    points = None if zero_point is None else np.full(len(rows), zero_point, np.uint8)
    return np.full(len(rows), scale, np.float32), points
