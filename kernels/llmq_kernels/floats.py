"""float16 and bfloat16 as bits in uint16 arrays, which is all that Numba can hold of them on a CPU.

Conversions are integer arithmetic, exact on every CPU: no half-precision instructions, and no float32 subnormals
that a process set to flush them would lose.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS

__all__ = [
    "INFINITE",
    "RUN",
    "float_value",
    "narrow",
    "round_scale",
    "round_single",
    "scale_value",
    "source_bits",
    "store_scale",
    "widen",
]

_FLOAT16: Final = SCALE_KINDS["float16"]
_BFLOAT16: Final = SCALE_KINDS["bfloat16"]
_FLOAT32: Final = SCALE_KINDS["float32"]

_SMALLEST_NORMAL: Final = 2.0**-126
_SMALLEST_HALF: Final = 2.0**-24
_SMALLEST_NORMAL_HALF: Final = 2.0**-14
_LARGEST_HALF: Final = 65504.0
_LARGEST_BFLOAT: Final = float(np.uint32(0x7F7F0000).view(np.float32))
_LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)
_ONE: Final = np.float32(1.0)

INFINITE: Final = 0x7F800000
"""Bits of infinity in float32; those of NaN are larger."""

RUN: Final = 1024
"""Columns that a kernel widens at a time, at the most: a multiple of 8."""


@jit
def float_of(bits: np.uint32) -> np.float32:
    """Reinterpret bits as float32; Numba takes `view` of nothing but a call."""
    return np.uint32(bits).view(np.float32)


@jit
def bits_of(x: np.float32) -> np.uint32:
    """Reinterpret float32 as bits."""
    return np.float32(x).view(np.uint32)


@jit
def half_to_float(bits: np.uint16) -> np.float32:
    """float32 of float16 bits, exact; NaN becomes quiet."""
    # All three cases are computed and one is chosen: no branches, so that loops become vector code.
    size = np.uint32(bits & 0x7FFF)
    sign = np.uint32(np.uint32(bits & 0x8000) << 16)
    normal = np.uint32((size << 13) + 0x38000000)
    special = np.uint32((size << 13) | (0x7FC00000 if size > 0x7C00 else 0x7F800000))
    steps = np.float32(np.int32(size)) * np.float32(2.0**-24)  # subnormal
    wide = special if size >= 0x7C00 else normal if size >= 0x0400 else bits_of(steps)
    return float_of(wide | sign)


@jit
def bfloat_to_float(bits: np.uint16) -> np.float32:
    """float32 of bfloat16 bits, exact; NaN becomes quiet."""
    wide = np.uint32(np.uint32(bits) << 16)
    if (wide & 0x7FFFFFFF) > 0x7F800000:
        wide = np.uint32(wide | 0x00400000)
    return float_of(wide)


@jit
def float_value(bits: np.uint32, kind: int) -> np.float32:
    """float32 of the bits of a float of any kind."""
    if kind == _FLOAT16:
        return half_to_float(np.uint16(bits))
    if kind == _BFLOAT16:
        return bfloat_to_float(np.uint16(bits))
    return float_of(bits)


@jit
def float_to_half(x: np.float32) -> np.uint16:
    """Round float32 to float16 bits, ties to even; from 65520 on infinity; NaN stays a quiet NaN."""
    bits = bits_of(x)
    sign = np.uint32((bits & 0x80000000) >> 16)
    size = np.uint32(bits & 0x7FFFFFFF)
    # The carry of the rounding may run into the exponent, up to infinity.
    normal = np.uint32((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13)
    # Subnormal: adding 1/2 makes the float32 adder round at 2**-24.
    small = np.uint32(bits_of(float_of(size) + np.float32(0.5)) - 0x3F000000)
    special = np.uint32((0x7E00 | ((size >> 13) & 0x3FF)) if size > 0x7F800000 else 0x7C00)
    half = special if size >= 0x47800000 else small if size < 0x38800000 else normal
    return np.uint16(half | sign)


@jit
def float_to_bfloat(x: np.float32) -> np.uint16:
    """bfloat16 bits nearest to `x`, ties to even; beyond the largest infinity; NaN stays a quiet NaN."""
    bits = bits_of(x)
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return np.uint16((bits >> 16) | 0x40)
    return np.uint16((np.uint64(bits) + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@jit
def scale_value(scale: np.ndarray, row: int, group: int, kind: int) -> np.float32:
    """One scale of `PackedMatrix.scale`, uint16 (rows, n_groups) or twice as wide, as float32."""
    if kind == _FLOAT32:
        low = np.uint32(scale[row, 2 * group])
        return float_of(low | (np.uint32(scale[row, 2 * group + 1]) << 16))
    if kind == _FLOAT16:
        return half_to_float(scale[row, group])
    return bfloat_to_float(scale[row, group])


@jit
def store_scale(scale: np.ndarray, row: int, group: int, kind: int, value: np.float32) -> None:
    """Write one scale that `round_scale` has rounded; the inverse of `scale_value`."""
    if kind == _FLOAT32:
        bits = bits_of(value)
        scale[row, 2 * group] = np.uint16(bits & 0xFFFF)
        scale[row, 2 * group + 1] = np.uint16(bits >> 16)
    elif kind == _FLOAT16:
        scale[row, group] = float_to_half(value)
    else:
        scale[row, group] = float_to_bfloat(value)


@jit
def round_single(value: np.float32, kind: int, steps: np.float32 = _ONE) -> np.float32:
    """Round a wanted scale to `kind`: never zero, infinite or NaN.

    Beyond the largest finite value it becomes that value; and `steps` times the result, the number that the code
    farthest from zero stands for, is finite in float32. In float32 and bfloat16 it becomes no smaller than the
    smallest normal value, 2**-126, so that dividing by it stays finite; in float16 no smaller than 2**-24. The sign
    is kept; zero and NaN count as positive and tiny.
    """
    if kind == _FLOAT16:
        smallest, largest = np.float32(_SMALLEST_HALF), np.float32(_LARGEST_HALF)
    else:
        smallest = np.float32(_SMALLEST_NORMAL)
        largest = np.float32(_LARGEST_BFLOAT if kind == _BFLOAT16 else _LARGEST_FLOAT) / steps
        if largest * steps > np.float32(_LARGEST_FLOAT):
            largest = float_of(bits_of(largest) - np.uint32(1))
    size = abs(value)
    size = size if size > smallest else smallest
    size = size if size < largest else largest
    # Finite, and in 32 bits, so that loops become vector code.
    bits = bits_of(size)
    if kind == _FLOAT16:
        normal = np.uint32(bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
        small = np.float32(np.float32(size + np.float32(0.5)) - np.float32(0.5))
        size = small if size < np.float32(_SMALLEST_NORMAL_HALF) else float_of(normal & np.uint32(0xFFFFE000))
    elif kind == _BFLOAT16:
        bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        size = float_of(bits & np.uint32(0xFFFF0000))
    return -size if value < np.float32(0.0) else size


@jit
def round_scale(value: float, kind: int, steps: float = 1.0) -> np.float32:
    """Round a wanted float64 scale to float32 and then to `kind`, as `round_single` does."""
    return round_single(np.float32(min(max(value, -_LARGEST_FLOAT), _LARGEST_FLOAT)), kind, np.float32(steps))


@jit
def _widen(bits: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Convert uint16 (n,) to float32 (n,)."""
    if kind == _FLOAT16:
        for i in range(bits.size):
            out[i] = half_to_float(bits[i])
    else:
        for i in range(bits.size):
            out[i] = bfloat_to_float(bits[i])


@jit
def _narrow(x: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Convert float32 (n,) to uint16 (n,)."""
    if kind == _FLOAT16:
        for i in range(x.size):
            out[i] = float_to_half(x[i])
    else:
        for i in range(x.size):
            out[i] = float_to_bfloat(x[i])


def source_bits(name: str, array: Any) -> tuple[np.ndarray, int]:
    """Bits of a weight as kernels read them, uint16 or uint32 (rows, columns), and their kind.

    Parameters
    ----------
    name : str
        Named in errors.
    array : float16, bfloat16 or float32 (rows, columns)
        Other floats become float32.

    Returns
    -------
    bits : read-only, C-contiguous
    kind : int
        A value of `SCALE_KINDS`.

    Raises
    ------
    TypeError, ValueError
        Not a matrix, or not of floats.
    """
    dtype = np.asarray(array).dtype
    if dtype.name in ("float16", "bfloat16"):
        return matrix_of(name, array, dtype.type).view(np.uint16), SCALE_KINDS[dtype.name]
    return matrix_of(name, array, np.float32).view(np.uint32), _FLOAT32


def widen(bits: np.ndarray, kind: str, *, out: np.ndarray | None = None) -> np.ndarray:
    """Convert float16 or bfloat16 bits to float32, exactly.

    Parameters
    ----------
    bits : uint16 (...)
    kind : {"float16", "bfloat16"}
    out : float32 (...), optional
        Written instead of a new array.

    Returns
    -------
    float32 (...)
        NaNs are quiet.

    Raises
    ------
    TypeError, ValueError
        Not uint16, an unknown kind, or an `out` that does not fit.

    Examples
    --------
    >>> widen(np.array([0x3C00, 0xC000, 0x0001], np.uint16), "float16").tolist()
    [1.0, -2.0, 5.960464477539063e-08]
    """
    if bits.dtype != np.uint16:
        raise TypeError(f"bits must be uint16, not {bits.dtype}")
    number = _half_kind(kind)
    flat = np.require(bits, None, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)
    out = output_of(out, bits.shape)
    _widen(frozen(flat), number, out.reshape(-1))
    return out


def narrow(x: np.ndarray, kind: str) -> np.ndarray:
    """Round float32 to float16 or bfloat16 bits, ties to even.

    Parameters
    ----------
    x : float32 (...)
    kind : {"float16", "bfloat16"}

    Returns
    -------
    uint16 (...)
        Overflow gives infinity; NaN stays a quiet NaN.

    Examples
    --------
    >>> [hex(v) for v in narrow(np.array([1.0, 65520.0, -0.0], np.float32), "float16")]
    ['0x3c00', '0x7c00', '0x8000']
    """
    if x.dtype != np.float32:
        raise TypeError(f"x must be float32, not {x.dtype}")
    number = _half_kind(kind)
    flat = np.require(x, None, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)
    out = np.empty(flat.size, np.uint16)
    _narrow(frozen(flat), number, out)
    return out.reshape(x.shape)


def _half_kind(kind: str) -> int:
    """Return the number of a 16-bit kind."""
    if kind not in ("float16", "bfloat16"):
        raise ValueError(f"kind must be float16 or bfloat16, not {kind!r}")
    return SCALE_KINDS[kind]
