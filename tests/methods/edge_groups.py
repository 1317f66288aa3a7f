"""Groups at the edges of what floats can hold: every bit pattern beside zeros, its negative, and the extremes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from llmq.spec import QuantizedTensor

SOURCES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
PER_ROW = 64
"""Groups in a row."""


def finite_values(source: str) -> np.ndarray:
    """All finite values of a 16-bit float, of either sign, zeros and subnormals among them."""
    values = np.arange(1 << 16, dtype=np.uint16).view(SOURCES[source])
    return values[np.isfinite(values.astype(np.float32))]


def families(source: str, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of every kind of group, each with every value in it: `size` elements, in every class of place."""
    values = finite_values(source)
    values = values[: len(values) // PER_ROW * PER_ROW]
    largest = values[np.argmax(values.astype(np.float32))]
    tiny = np.array([1], np.uint16).view(SOURCES[source])[0]
    same = np.repeat(values[:, None], size, axis=1)
    others = {"zeros": np.zeros_like(same), "itself": same, "tiny": np.full_like(same, tiny)}
    yield "constant", rows_of(same)
    for at in sorted({0, size // 2, size - 1}):
        for name, column in (("zero", 0), ("negative", -values), ("largest", largest), ("least", -largest)):
            group = same.copy()
            group[:, at] = column
            yield f"{name} at {at}", rows_of(group)
        for name, group in others.items():
            group = group.copy()
            group[:, at], group[:, (at + 1) % size] = values, -values
            yield f"pair in {name} at {at}", rows_of(group)
            group[:, (at + 1) % size] = others[name][:, 0]
            yield f"alone in {name} at {at}", rows_of(group)


def rows_of(groups: np.ndarray) -> np.ndarray:
    """Groups side by side."""
    return np.ascontiguousarray(groups.reshape(-1, PER_ROW * groups.shape[1]))


@dataclass(frozen=True)
class Result:
    """A quantized weight beside what it was, a group a row, in float64 where nothing overflows."""

    x: np.ndarray
    w: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    q: QuantizedTensor

    @classmethod
    def of(cls, rows: np.ndarray, q: QuantizedTensor) -> Result:
        """Compare."""
        size = q.spec.group_size
        zero = np.float64(0.5 if q.spec.bits == 1 else 2 ** (q.spec.bits - 1))
        zeros = np.full((q.scale.size, 1), zero) if q.zero_point is None else q.zero_point.reshape(-1, 1)
        wide = (a.astype(np.float64).reshape(-1, n) for a, n in ((rows, size), (q.dequantize(), size), (q.scale, 1)))
        return cls(*wide, zeros.astype(np.float64), q)

    @property
    def error(self) -> np.ndarray:
        """Magnitude of what each element is off."""
        return np.abs(self.w - self.x)

    def check_stored(self) -> None:
        """Whether scales, zero points and codes are what a reader may rely on."""
        spec, top = self.q.spec, 2**self.q.spec.bits - 1
        codes = self.q.codes()
        assert np.isfinite(self.scale).all()
        assert (self.scale != 0).all()
        assert codes.max() <= top
        assert codes.min() >= (spec.range == "narrow")
        assert self.q.zero_point is None or self.q.zero_point.max() <= top
        assert np.isfinite(self.w).all()

    def limit(self) -> np.ndarray:
        """Bound on the error where the range just holds the group, as docs/methods.md has it; float64 (groups, n).

        Half a step, and what rounding the scale to its dtype takes from the range. Beyond the farthest code that is
        finite, or that the largest scale reaches, numbers are clipped.
        """
        spec, step = self.q.spec, np.abs(self.scale)
        top = 2.0**spec.bits - 1
        steps = top if spec.symmetric is False else half_steps(spec)
        rounding = steps * spacing(step, str(spec.scale_dtype)) / 2
        low, high = -step * (self.zero_point - float(spec.range == "narrow")), step * (top - self.zero_point)
        clipped = np.maximum(np.maximum(low - self.x, self.x - high), 0.0)
        exact = step / 2 + rounding + np.abs(self.x) * 2.0**-22
        return np.where(overflown(self), np.maximum(exact, clipped), exact)


def half_steps(spec: Any) -> float:
    """Steps from zero to the largest magnitude of a symmetric grid."""
    return 0.5 if spec.bits == 1 else 2.0 ** (spec.bits - 1) - (1.0 if spec.range == "narrow" else 0.5)


def spacing(size: np.ndarray, dtype: str) -> np.ndarray:
    """Distance of neighbours among floats of a dtype."""
    lowest, digits = {"float16": (-14, 10), "bfloat16": (-126, 7), "float32": (-126, 23)}[dtype]
    return np.asarray(2.0 ** (np.maximum(np.floor(np.log2(size)), lowest) - digits))


def overflown(result: Result) -> np.ndarray:
    """Groups whose scale is as large as may be: float16's end, or what keeps the numbers of all codes finite."""
    spec, step = result.q.spec, np.abs(result.scale)
    if spec.scale_dtype == "float16":
        return np.asarray(step == 65504.0)
    farthest = np.maximum(result.zero_point, 2.0**spec.bits - 1 - result.zero_point)
    if spec.symmetric:
        farthest = np.maximum(1.0, 2.0 ** (spec.bits - 1) - float(spec.range == "narrow"))
    largest = float.fromhex("0x1.fep127") if spec.scale_dtype == "bfloat16" else float(np.finfo(np.float32).max)
    return np.asarray(step * 1.005 >= largest / farthest)
