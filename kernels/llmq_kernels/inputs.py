"""Inputs of integer layers to int8: `x` is about `scale * (code - zero_point)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmq_kernels.doors import frozen, numbers_of
from llmq_kernels.extremes import extreme_bits
from llmq_kernels.floats import float_of
from llmq_kernels.jit import jit, jit_enabled

__all__ = [
    "checked_parameters",
    "encode_input",
    "input_parameters",
    "input_parameters_reference",
    "input_vectors",
    "quantize_inputs",
    "quantize_inputs_reference",
]

_LEAST = np.float32(2.0**-126)
"""Scale of nothing but zeros."""

_MOST = np.finfo(np.float32).max


def quantize_inputs_reference(x: np.ndarray, scale: Any, zero_point: Any, bits: int = 8) -> np.ndarray:
    """Specify `quantize_inputs` in plain NumPy, in float32: half to even; NaN becomes the lowest code.

    Examples
    --------
    >>> quantize_inputs_reference(np.array([[-1.0, 0.25, 0.75, 99.0, np.nan]], np.float32), 0.5, -3).tolist()
    [[-5, -3, -1, 127, -128]]
    """
    shape = (-1,) + (1,) * (x.ndim - 1)
    ratio = x / np.asarray(scale, np.float32).reshape(shape if np.ndim(scale) else ())
    half = 1 << (bits - 1)
    codes = np.rint(ratio) + np.asarray(zero_point, np.float32).reshape(shape if np.ndim(zero_point) else ())
    codes = np.where(np.isnan(codes), np.float32(-half), np.clip(codes, -half, half - 1))
    return codes.astype(np.int8)


def input_parameters_reference(
    x: np.ndarray, bits: int = 8, *, symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Specify `input_parameters` with ``per_row=True`` in plain NumPy, in float32.

    Examples
    --------
    >>> scale, zero_point = input_parameters_reference(np.array([[-2.0, 0.0, 13.0], [1.0, 2.0, 3.0]], np.float32), 4)
    >>> scale.tolist(), zero_point.tolist()
    ([1.0, 0.20000000298023224], [-6, -8])
    """
    x = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
    low, high = x.min(axis=1, initial=0), x.max(axis=1, initial=0)
    if symmetric:
        scale = np.maximum(np.maximum(-low, high) / np.float32(2 ** (bits - 1) - 1), _LEAST)
        return scale, np.zeros(len(x), np.int32)
    levels = np.float32(2**bits - 1)
    scale = np.maximum(high / levels - low / levels, _LEAST)
    return scale, np.rint(-low / scale).astype(np.int32) - (1 << (bits - 1))


@jit
def encode_input(x: np.float32, scale: np.float32, point: np.float32, low: np.float32, high: np.float32) -> np.int32:
    """Round one value to a code of `low` to `high`, NaN to the lowest."""
    code = np.rint(x / scale) + point
    # A comparison with NaN is false.
    code = code if code > low else low
    return np.int32(code if code < high else high)


@jit
def _quantize_inputs(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, bits: int, codes: np.ndarray) -> None:
    """Round float32 (rows, n) to int8 (rows, n) by the scale and zero point of each row."""
    low, high = np.float32(-(1 << (bits - 1))), np.float32((1 << (bits - 1)) - 1)
    for row in range(x.shape[0]):
        divisor, point = scale[row], np.float32(zero_point[row])
        for i in range(x.shape[1]):
            codes[row, i] = np.int8(encode_input(x[row, i], divisor, point, low, high))


@jit
def _find_parameters(x: np.ndarray, bits: int, symmetric: bool, scale: np.ndarray, zero_point: np.ndarray) -> bool:
    """Find scale and zero point of each row, float32 (rows, n), or many times those of one; whether all is finite."""
    values = x.view(np.uint32)
    levels, half = np.float32((1 << bits) - 1), 1 << (bits - 1)
    for row in range(x.shape[0]):
        low_bits, high_bits = extreme_bits(values, row, 0, x.shape[1])
        low, high = float_of(low_bits), float_of(high_bits)
        # Not finite, NaN included; a comparison with it is false.
        if not (low >= -_MOST and high <= _MOST):
            return False
        if symmetric:
            scale[row] = max(max(-low, high) / np.float32(half - 1), _LEAST)
            zero_point[row] = 0
        else:
            scale[row] = max(high / levels - low / levels, _LEAST)
            zero_point[row] = np.int32(np.rint(-low / scale[row])) - half
    for row in range(x.shape[0], scale.size):
        scale[row], zero_point[row] = scale[0], zero_point[0]
    return True


@jit
def _spread(scale: np.ndarray, zero_point: np.ndarray, bits: int, scales: np.ndarray, zero_points: np.ndarray) -> bool:
    """Give each row its scale and zero point, of one or as many; whether they are positive, finite, codes of `bits`."""
    half, fine = 1 << (bits - 1), True
    for row in range(scales.size):
        s, point = scale[row if scale.size > 1 else 0], zero_point[row if zero_point.size > 1 else 0]
        fine &= np.float32(0.0) < s <= _MOST and -half <= point < half
        scales[row], zero_points[row] = s, point
    return fine


def input_parameters(
    x: np.ndarray, bits: int = 8, *, symmetric: bool = False, per_row: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Find scale and zero point of inputs from their range (dynamic quantization).

    Symmetric: ``scale = max|x| / (2**(bits-1) - 1)``, zero point 0. Asymmetric: the range of `x`, extended to include
    zero, over ``2**bits - 1`` steps. Nothing but zeros gives the scale 2**-126.

    Parameters
    ----------
    x : float32 (n, ...)
    bits : int
        2 to 8.
    symmetric : bool
    per_row : bool
        One range for each item of the first axis (per token, per sample), or one for all.

    Returns
    -------
    scale : float32 () or (n,)
    zero_point : int32 () or (n,)
        Of int8 codes, `-2**(bits-1)` to `2**(bits-1) - 1`.

    Raises
    ------
    TypeError
        Not float32.
    ValueError
        A width out of range, or values that are not finite.
    """
    scale, zero_point = input_vectors(x, bits, symmetric=symmetric, per_row=per_row)
    return (scale, zero_point) if per_row else (scale[:1].reshape(()), zero_point[:1].reshape(()))


def input_vectors(x: np.ndarray, bits: int, *, symmetric: bool, per_row: bool) -> tuple[np.ndarray, np.ndarray]:
    """`input_parameters` as vectors: float32 and int32 (n,), at least one element unless ``per_row``."""
    _check_bits(bits)
    x = _floats_of(x)
    rows, count = (x.shape[0], x.shape[0]) if per_row else (1, max(x.shape[0], 1))
    flat = x.reshape(rows, -1 if x.size else 0)
    if not jit_enabled():
        if np.isfinite(flat).all():
            scale, zero_point = input_parameters_reference(flat, bits, symmetric=symmetric)
            return np.resize(scale, count), np.resize(zero_point, count)
    else:
        scale, zero_point = np.empty(count, np.float32), np.empty(count, np.int32)
        if _find_parameters(flat, bits, symmetric, scale, zero_point):
            return scale, zero_point
    raise ValueError("inputs must be finite for their range to be found, not NaN or infinite")


def quantize_inputs(
    x: np.ndarray, scale: Any, zero_point: Any = 0, *, bits: int = 8, out: np.ndarray | None = None
) -> np.ndarray:
    """Round inputs to int8: ``clip(rint(x / scale) + zero_point)``.

    Parameters
    ----------
    x : float32 (n, ...)
    scale : float32, or float32 (n,)
        Positive; of everything, or of each item of the first axis.
    zero_point : int, or int32 (n,)
    bits : int
        Codes are `-2**(bits-1)` to `2**(bits-1) - 1`; 2 to 8.
    out : int8, the shape of `x`, optional
        Written instead of a new array.

    Returns
    -------
    int8, the shape of `x`

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or numbers out of range.
    """
    x = _floats_of(x)
    rows = x.shape[0] if np.ndim(scale) or np.ndim(zero_point) else 1
    scales, points = checked_parameters(scale, zero_point, bits, rows)
    flat = x.reshape(rows, -1) if x.size else x.reshape(0, 0)
    if out is None:
        out = np.empty(x.shape, np.int8)
    elif out.shape != x.shape or out.dtype != np.int8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous int8 array of shape {x.shape}, not {out.shape}")
    _quantize_inputs(frozen(flat), frozen(scales), frozen(points), bits, out.reshape(flat.shape))
    return out


def checked_parameters(scale: Any, zero_point: Any, bits: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales, float32 (rows,), and zero points, int32 (rows,), of inputs.

    Raises
    ------
    TypeError, ValueError
        Neither one nor one for each row, or out of range.
    """
    _check_bits(bits)
    scales, points = np.empty(rows, np.float32), np.empty(rows, np.int32)
    scale = numbers_of("scale", scale, rows, np.float32)
    if _spread(scale, numbers_of("zero_point", zero_point, rows, np.int32), bits, scales, points):
        return scales, points
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError("scale must be positive and finite")
    half = 1 << (bits - 1)
    raise ValueError(f"zero_point must be {-half} to {half - 1}, found {points.min()} to {points.max()}")


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits of inputs must be 2 to 8, not {bits}")


def _floats_of(values: Any) -> np.ndarray:
    x: np.ndarray = np.asarray(values)
    if x.dtype == np.float32 and x.ndim and x.flags.c_contiguous and x.flags.aligned:
        return x  # what nearly every call comes to
    if not np.can_cast(x.dtype, np.float32, casting="same_kind"):
        raise TypeError(f"x must be float32, not {x.dtype}")
    return np.require(np.atleast_1d(x), np.float32, ["C_CONTIGUOUS", "ALIGNED"])
