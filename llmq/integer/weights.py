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
        Parts, scales and a shape that do not fit each other, or scales that are not positive and finite; on full
        symmetric grids, which have a code to spare, they may be negative.
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
        mirrored = self.spec.symmetric and self.spec.range == "full"
        if not (np.isfinite(self.scale) & ((np.abs(self.scale) if mirrored else self.scale) > 0)).all():
            raise ValueError(f"scale must be {'finite and not zero' if mirrored else 'positive and finite'}")

    @classmethod
    def of(cls, codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, spec: QuantSpec) -> LayerWeight:
        """Make a weight of codes that were chosen elsewhere.

        Negative scales are turned over with their codes, but for those of full symmetric grids.

        Parameters
        ----------
        codes : uint8 (rows, ...)
            Everything behind the first axis makes up a row.
        scale : float32 (rows, n_groups)
            Steps: ``w = scale * (code - zero_point)``, and ``scale * (code - 1/2)`` on the sign grid of one bit.
        zero_point : uint8 (rows, n_groups) or None
            None for symmetric grids: `2**(bits-1)`.
        spec : QuantSpec
            Its `bits`, `symmetric` and `range` count.

        Raises
        ------
        TypeError, ValueError
            Arrays that do not fit each other or the spec.

        Examples
        --------
        >>> from llmq.spec import QuantSpec
        >>> codes, scale = np.array([[1, 2, 3]], np.uint8), np.array([[-0.5]], np.float32)
        >>> weight = LayerWeight.of(codes, scale, None, QuantSpec(bits=2, range="narrow", strategy="channel"))
        >>> weight.scale.tolist(), weight.values.tolist()
        ([[0.5]], [[0.5, 0.0, -0.5]])
        """
        rows, groups = scale.shape if scale.ndim == 2 else (0, 0)
        columns = prod(codes.shape[1:])
        if codes.dtype != np.uint8 or codes.ndim < 2 or len(codes) != rows or not groups or columns % groups:
            raise ValueError(
                f"codes must be uint8 of {rows} rows that {groups} groups divide, not {codes.dtype} {codes.shape}"
            )
        if (zero_point is None) != spec.symmetric or (zero_point is not None and zero_point.shape != scale.shape):
            raise ValueError("zero points belong to asymmetric grids, one to each scale")
        _check_codes(codes, spec)
        grouped = codes.reshape(rows, groups, columns // groups)
        if not (spec.symmetric and spec.range == "full"):
            grouped, scale, zero_point = _turned(grouped, scale, zero_point, spec.bits)
        half = np.float32(2.0 if spec.bits == 1 and spec.symmetric else 1.0)
        return cls(_parts(grouped, zero_point, spec.bits), np.ascontiguousarray(scale / half), codes.shape, spec)

    @cached_property
    def rows(self) -> int:
        """Output features or filters."""
        return self.parts[0].rows

    @cached_property
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
    parts = _parts(codes, None if zero_point is None else zero_point.reshape(rows, -1), spec.bits)
    return LayerWeight(parts, np.ascontiguousarray(scale.reshape(rows, -1), np.float32), weight.shape, spec)


def _check_codes(codes: np.ndarray, spec: QuantSpec) -> None:
    lowest, highest = int(spec.range == "narrow"), 2**spec.bits - 1
    if codes.size and not lowest <= int(codes.min()) <= int(codes.max()) <= highest:
        raise ValueError(f"codes must be {lowest} to {highest}, found {int(codes.min())} to {int(codes.max())}")


def _turned(
    codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Positive scales that stand for the same: codes (rows, n_groups, group_size) count from the other end."""
    negative = scale < 0
    if zero_point is None:  # a narrow range: codes from 1 on
        turned = np.where(negative[:, :, None], np.uint8(2**bits % 256) - codes, codes)
        return turned, np.abs(scale), None
    most = np.uint8(2**bits - 1)
    turned = np.where(negative[:, :, None], most - codes, codes)
    return turned, np.abs(scale), np.where(negative, most - zero_point, zero_point)


def _parts(codes: np.ndarray, zero_point: np.ndarray | None, bits: int) -> tuple[IntegerWeight, ...]:
    """Pack each group of codes (rows, n_groups, group_size) with its zero points, uint8 (rows, n_groups)."""
    points = [None if zero_point is None else np.ascontiguousarray(zero_point[:, i]) for i in range(codes.shape[1])]
    return tuple(IntegerWeight.of(np.ascontiguousarray(codes[:, i]), bits, point) for i, point in enumerate(points))


def _parameters(rows: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point of each of float32 (rows, n)."""
    whole = spec.strategy == "tensor"
    ranges = range_for(rows, spec if whole else replace(spec, strategy="channel"))
    scale, zero_point = scale_and_zero_point(*ranges, spec)
    if not whole:
        return scale, zero_point
    points = None if zero_point is None else np.full(len(rows), zero_point, np.uint8)
    return np.full(len(rows), scale, np.float32), points
