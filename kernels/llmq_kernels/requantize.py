"""Sums of integer layers to what the next layer reads: float32, or int8 by a fixed-point multiplier."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmq_kernels.doors import frozen, output_of, vector_of
from llmq_kernels.jit import jit

__all__ = [
    "bias_codes",
    "bias_codes_reference",
    "dequantize_outputs",
    "dequantize_outputs_reference",
    "fixed_point",
    "requantize",
    "requantize_reference",
]


def dequantize_outputs_reference(
    sums: np.ndarray, x_scale: Any, w_scale: Any, bias: np.ndarray | None = None
) -> np.ndarray:
    """Specify `dequantize_outputs` in plain NumPy: one rounding of the factor, of the sum and of their product.

    Examples
    --------
    >>> sums = np.array([[100, -7]], np.int32)
    >>> dequantize_outputs_reference(sums, 0.5, np.array([0.25, 2.0], np.float32), np.array([4, 1], np.int32)).tolist()
    [[13.0, -6.0]]
    """
    last = (1,) * (sums.ndim - 2)
    factor = np.asarray(x_scale, np.float32).reshape(-1, 1, *last) * np.asarray(w_scale, np.float32).reshape(-1, *last)
    bias = np.zeros(1, np.int32) if bias is None else bias
    bias = bias.reshape(-1, *last)
    exact = bias.dtype == np.int32
    total: np.ndarray = (sums + bias if exact else sums).astype(np.float32) * factor
    return total if exact else total + bias


def bias_codes_reference(
    bias: np.ndarray, x_scale: Any, w_scale: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Specify `bias_codes` in plain NumPy, in float64.

    Examples
    --------
    >>> bias, w_scale = np.array([1.0, -70.0], np.float32), np.array([0.5, 0.25], np.float32)
    >>> codes, rest = bias_codes_reference(bias, np.float32(0.5), w_scale, 512.0)
    >>> codes.tolist(), rest.tolist()
    ([[4, -512]], [[0.0, -6.0]])
    """
    scales = np.asarray(x_scale, np.float64).reshape(-1, 1) * w_scale.astype(np.float64)
    whole = np.rint(bias / scales)
    codes = np.clip(whole, -limit, limit)
    rest = np.where(whole == codes, 0.0, bias - codes * scales)
    return codes.astype(np.int32), rest.astype(np.float32)


@jit
def _bias_codes(
    bias: np.ndarray, scales: tuple[np.ndarray, np.ndarray], limit: float, codes: np.ndarray, rest: np.ndarray
) -> None:
    x_scale, w_scale = scales
    for token in range(codes.shape[0]):
        for row in range(codes.shape[1]):
            scale = np.float64(x_scale[token]) * np.float64(w_scale[row])
            whole = np.rint(np.float64(bias[row]) / scale)
            code = min(max(whole, -limit), limit)
            codes[token, row] = np.int32(code)
            rest[token, row] = np.float32(0.0 if whole == code else bias[row] - code * scale)


def bias_codes(bias: np.ndarray, x_scale: Any, w_scale: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Round a bias to the steps of sums, ``rint(bias / (x_scale * w_scale))``.

    Parameters
    ----------
    bias : float32 (rows,)
        Finite.
    x_scale : float32, or float32 (n,)
    w_scale : float32 (rows,)
        Both finite and not zero.
    limit : float
        Largest magnitude of a code, at most 2**31 - 1.

    Returns
    -------
    codes : int32 (n, rows)
        `n` is 1 where there is one scale.
    rest : float32 (n, rows)
        What codes beyond the limit would have stood for.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other.
    """
    n, rows = np.size(x_scale), bias.size
    shape = n, rows
    codes, rest = np.empty(shape, np.int32), np.empty(shape, np.float32)
    scales = vector_of("x_scale", x_scale, n, np.float32), vector_of("w_scale", w_scale, rows, np.float32)
    _bias_codes(vector_of("bias", bias, rows, np.float32), scales, limit, codes, rest)
    return codes, rest


def fixed_point(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split positive factors into `multiplier * 2**-shift`, as integer-only inference does (arXiv:1712.05877, 2.2).

    Parameters
    ----------
    factor : float64 (n,)
        2**-31 up to, but not including, 2**30.

    Returns
    -------
    multiplier : int32 (n,)
        2**30 to 2**31 - 1: off by at most 2**-31 of it, but for the very last step below a power of two.
    shift : int32 (n,)
        1 to 61.

    Raises
    ------
    ValueError
        A factor out of range.

    Examples
    --------
    >>> [part.tolist() for part in fixed_point(np.array([0.375, 1.0]))]
    [[1610612736, 1073741824], [32, 30]]
    """
    factor = np.atleast_1d(np.asarray(factor, np.float64))
    if not ((factor >= 2.0**-31) & (factor < 2.0**30)).all():
        raise ValueError(f"factors must be 2**-31 up to 2**30, found {factor.min()} to {factor.max()}")
    fraction, exponent = np.frexp(factor)
    multiplier = np.minimum(np.rint(fraction * 2.0**31), 2.0**31 - 1).astype(np.int32)
    return multiplier, (31 - exponent).astype(np.int32)


def requantize_reference(
    sums: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    zero_point: int = 0,
    limits: tuple[int, int] = (-128, 127),
) -> np.ndarray:
    """Specify `requantize` in plain NumPy, with Python's integers.

    Examples
    --------
    >>> multiplier, shift = fixed_point(np.array([0.25, 0.5]))
    >>> requantize_reference(np.array([[6, 5], [10, -999]], np.int32), multiplier, shift, zero_point=1).tolist()
    [[3, 3], [3, -128]]
    """
    last = (1,) * (sums.ndim - 2)
    total = sums.astype(object) + (0 if bias is None else bias.astype(object).reshape(-1, *last))
    product = total * multiplier.astype(object).reshape(-1, *last)
    step = (1 << shift.astype(object)).reshape(-1, *last)
    whole, rest = product // step, product % step
    whole = whole + ((2 * rest > step) | ((2 * rest == step) & (whole % 2 == 1))).astype(object)
    clipped: np.ndarray = np.clip(whole + zero_point, *limits)
    return clipped.astype(np.int8)


@jit
def _dequantize(
    sums: np.ndarray, scales: tuple[np.ndarray, np.ndarray], biases: tuple[np.ndarray, np.ndarray], out: np.ndarray
) -> None:
    """Scale int32 (n, channels, size) to float32; biases are int32 before and float32 after scaling, (channels,)."""
    x_scale, w_scale = scales
    before, after = biases
    for i in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            factor = x_scale[i] * w_scale[channel]
            for j in range(sums.shape[2]):
                total = np.int32(sums[i, channel, j] + before[channel])
                out[i, channel, j] = np.float32(total) * factor + after[channel]


@jit
def _requantize(
    sums: np.ndarray,
    factors: tuple[np.ndarray, np.ndarray, np.ndarray],
    target: tuple[int, int, int],
    out: np.ndarray,
) -> None:
    """Scale int32 (n, channels, size) to int8; factors are (multiplier, shift, bias), target (zero point, limits)."""
    multiplier, shift, bias = factors
    zero_point, low, high = target
    for i in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            places = np.int64(shift[channel])
            half = np.int64(1) << (places - 1)
            for j in range(sums.shape[2]):
                product = (np.int64(sums[i, channel, j]) + bias[channel]) * np.int64(multiplier[channel])
                whole = product >> places
                rest = product - (whole << places)
                whole += np.int64(rest > half or (rest == half and whole & 1 == 1))
                out[i, channel, j] = np.int8(min(max(whole + zero_point, low), high))


def dequantize_outputs(
    sums: np.ndarray,
    x_scale: Any,
    w_scale: Any,
    bias: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Scale the sums of a layer to float32: ``(sums + bias) * (x_scale * w_scale)``.

    Parameters
    ----------
    sums : int32 (n, channels, ...)
    x_scale : float32, or float32 (n,)
    w_scale : float32, or float32 (channels,)
    bias : int32 or float32 (channels,), optional
        Int32 is added to the sums, with which it must hold in 32 bits; float32 after scaling.
    out : float32, the shape of `sums`, optional
        Written instead of a new array.

    Returns
    -------
    float32, the shape of `sums`

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other.
    """
    sums, flat = _sums_of(sums)
    n, channels = sums.shape[:2]
    scales = vector_of("x_scale", x_scale, n, np.float32), vector_of("w_scale", w_scale, channels, np.float32)
    exact = bias is not None and np.asarray(bias).dtype == np.int32
    before = vector_of("bias", bias if exact else 0, channels, np.int32)
    # Minus zero changes no sum, not even minus zero.
    after = vector_of("bias", -0.0 if exact or bias is None else bias, channels, np.float32)
    out = output_of(out, sums.shape)
    _dequantize(frozen(flat), scales, (before, after), out.reshape(flat.shape))
    return out


def requantize(
    sums: np.ndarray,
    multiplier: np.ndarray,
    shift: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    zero_point: int = 0,
    limits: tuple[int, int] = (-128, 127),
) -> np.ndarray:
    """Scale the sums of a layer to int8 in integers alone, for a layer that reads int8.

    ``clip(round((sums + bias) * multiplier / 2**shift) + zero_point)``, halves to even, in 64 bits.

    Parameters
    ----------
    sums : int32 (n, channels, ...)
    multiplier, shift : int32 (channels,) or (1,)
        See `fixed_point`.
    bias : int32 (channels,), optional
    zero_point : int
        Code that stands for zero.
    limits : (int, int)
        Lowest and highest code; the zero point as the lowest makes a ReLU.

    Returns
    -------
    int8, the shape of `sums`

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or numbers out of range.
    """
    sums, flat = _sums_of(sums)
    channels = sums.shape[1]
    factors = (
        vector_of("multiplier", multiplier, channels, np.int32),
        vector_of("shift", shift, channels, np.int32),
        vector_of("bias", 0 if bias is None else bias, channels, np.int32),
    )
    if channels and (factors[0].min() < 0 or not 1 <= factors[1].min() <= factors[1].max() <= 62):
        raise ValueError("multiplier must not be negative, and shift 1 to 62")
    low, high = limits
    if not -128 <= low <= high <= 127:
        raise ValueError(f"limits must be within -128 to 127, not {low} and {high}")
    out = np.empty(sums.shape, np.int8)
    _requantize(frozen(flat), factors, (int(zero_point), int(low), int(high)), out.reshape(flat.shape))
    return out


def _sums_of(sums: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sums as they are, and as int32 (n, channels, size)."""
    sums = np.asarray(sums)
    if sums.dtype != np.int32:
        raise TypeError(f"sums must be int32, not {sums.dtype}")
    if sums.ndim < 2:
        raise ValueError(f"sums must have shape (n, channels, ...), not {sums.shape}")
    sums = np.require(sums, np.int32, ["C_CONTIGUOUS", "ALIGNED"])
    size = int(np.prod(sums.shape[2:]))
    return sums, sums.reshape(*sums.shape[:2], size)
