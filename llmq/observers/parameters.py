"""Scales and zero points from ranges, and values to codes and back: `x ~ scale * (code - zero_point)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from llmq.spec import QuantSpec

__all__ = ["LEAST_SCALE", "dequantize_array", "quantize_array", "scale_and_zero_point"]

LEAST_SCALE: Final = np.float32(2.0**-126)
"""The least scale, for ranges of zeros: the least normal float32."""


def scale_and_zero_point(low: ArrayLike, high: ArrayLike, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose the grid that just holds `[low, high]`.

    Asymmetric: the range is widened to include zero, ``scale = (high - low) / (2**bits - 1)`` and ``zero_point =
    round(-low / scale)``. Symmetric: ``scale = max(|low|, |high|) / (2**(bits-1) - 1)`` for a narrow range, over
    ``2**(bits-1) - 1/2`` for a full one, so that both ends lose half a step at most; the sign grid of one bit, ``{-s,
    +s}``, has the scale ``2 s`` with ``s = max(|low|, |high|)``.

    Parameters
    ----------
    low, high : float, any shape
    spec : QuantSpec

    Returns
    -------
    scale : float32, the same shape
        Positive.
    zero_point : uint8, the same shape, or None
        None for symmetric grids: `2**(bits-1)`, and one half for one bit.

    Raises
    ------
    ValueError
        Ends that are not finite, or out of order.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> scale_and_zero_point(-1.0, 2.0, QuantSpec(bits=2, symmetric=False))
    (array(1., dtype=float32), array(1, dtype=uint8))
    >>> scale_and_zero_point(-1.0, 7.0, QuantSpec(bits=4, range="narrow"))
    (array(1., dtype=float32), None)
    """
    a, b = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a range must be finite")
    if (a > b).any():
        raise ValueError("the lower end of a range is above its upper end")
    if spec.symmetric:
        return _in_float32(np.maximum(np.abs(a), np.abs(b)) / _half_steps(spec)), None
    a, b = np.minimum(a, 0.0), np.maximum(b, 0.0)
    scale = _in_float32((b - a) / (2**spec.bits - 1))
    zero_point = np.clip(np.rint(-a / scale), 0, 2**spec.bits - 1)
    return scale, np.asarray(zero_point.astype(np.uint8))


def _in_float32(scale: np.ndarray) -> np.ndarray:
    """Round scales, those of ranges of zeros to the least normal float32, those beyond all of them to the largest."""
    return np.asarray(np.maximum(np.minimum(scale, np.finfo(np.float32).max).astype(np.float32), LEAST_SCALE))


def _half_steps(spec: QuantSpec) -> float:
    """Steps from zero to the end of a symmetric range."""
    if spec.bits == 1:
        return 0.5
    return float(1 << (spec.bits - 1)) - (1.0 if spec.range == "narrow" else 0.5)


def quantize_array(x: np.ndarray, scale: ArrayLike, zero_point: ArrayLike | None, spec: QuantSpec) -> np.ndarray:
    """Round to codes: ``clamp(round(x / scale) + zero_point, lowest, 2**bits - 1)``, half to even.

    Parameters
    ----------
    x : float, any shape
        Finite; values beyond the range take its end.
    scale, zero_point : float32 and uint8, or None
        As `scale_and_zero_point` gives them, of a shape that broadcasts against `x`.
    spec : QuantSpec
        `lowest` is 1 for narrow ranges, else 0.

    Returns
    -------
    uint8, the shape of `x`

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> quantize_array(np.array([-1.0, 0.4, 2.0, 9.0], np.float32), 1.0, 1, QuantSpec(bits=2, symmetric=False)).tolist()
    [0, 1, 3, 3]
    """
    ratio = np.asarray(x, np.float32) / np.asarray(scale, np.float32)
    if zero_point is None and spec.bits == 1:
        return np.asarray(ratio > 0, np.uint8)
    zero = np.float32(2 ** (spec.bits - 1)) if zero_point is None else np.asarray(zero_point, np.float32)
    lowest = 1 if spec.range == "narrow" else 0
    return np.asarray(np.clip(np.rint(ratio) + zero, lowest, 2**spec.bits - 1), np.uint8)


def dequantize_array(codes: np.ndarray, scale: ArrayLike, zero_point: ArrayLike | None, spec: QuantSpec) -> np.ndarray:
    """Widen codes to the values they stand for, ``scale * (code - zero_point)``, float32.

    Parameters
    ----------
    codes : uint8, any shape
    scale, zero_point, spec
        As for `quantize_array`.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> dequantize_array(np.array([0, 1], np.uint8), 4.0, None, QuantSpec(bits=1)).tolist()
    [-2.0, 2.0]
    """
    middle = 0.5 if spec.bits == 1 else float(2 ** (spec.bits - 1))
    zero = np.float32(middle) if zero_point is None else np.asarray(zero_point, np.float32)
    return np.asarray(np.asarray(scale, np.float32) * (codes.astype(np.float32) - zero), np.float32)
