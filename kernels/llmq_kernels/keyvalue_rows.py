"""How a row of a key-value cache, one head of one token, is held: in 32, 16, 8 or 4 bits an element.

What depends on how elements are held is chosen by the type of an argument while compiling.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from llmq_kernels.cache_elements import BLOCK, PADDED
from llmq_kernels.extremes import extreme_bits
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.hadamard import hadamard, hadamard_reference
from llmq_kernels.jit import jit

__all__ = [
    "decode_rows_reference",
    "encode_rows_reference",
    "padded",
    "row_elements",
    "store_row",
    "transform_row",
]

_ROUND: Final = np.float32(12582912.0)  # adding and subtracting it rounds to the nearest integer, ties to even
_LARGEST_CODE: Final = np.float32(127.0)
_SMALLEST: Final = np.float32(1e-30)
_MOST: Final = np.finfo(np.float32).max


def padded(head_dim: int, bits: int) -> int:
    """Elements that a head of `head_dim` takes room for.

    Examples
    --------
    >>> [padded(n, 16) for n in (64, 72, 80)]
    [64, 80, 80]
    >>> [padded(n, 4) for n in (64, 72, 80)]
    [64, 96, 96]
    """
    step = BLOCK if bits == 4 else PADDED
    return -(-head_dim // step) * step


def encode_rows_reference(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Specify in plain NumPy how float32 (..., n) rows are held: elements, and the scales of 8 and 4 bits (else none).

    In 16 bits an element is off by 1/256 of itself at most, and stays NaN or infinite. In 8 bits the scale is a row's
    largest size over 127, and an element is off by half a scale at most. In 4 bits what is held is the row's
    `hadamard_reference`: its scale is the element of largest size (the negative one of two) over -8, the codes are -8
    to 7, and an element is off by half a scale at most, or by a whole one where it should have the code 8. Of each 32
    codes, n being a multiple of that, the first 16 are the lower halves of 16 bytes and the others the upper ones, in
    two's complement. In 8 and 4 bits what is zeros, or of sizes below 1e-30, has scale 0; with NaN or infinity in it
    the whole row becomes NaN.

    Examples
    --------
    >>> codes, scale = encode_rows_reference(np.array([[2.54, -1.0, 0.0]], np.float32), 8)
    >>> codes.tolist(), scale.round(4).tolist()
    ([[127, -50, 0]], [0.019999999552965164])
    >>> [hex(bits) for bits in encode_rows_reference(np.array([1.0, 1.00390625], np.float32), 16)[0]]
    ['0x3f80', '0x3f80']
    >>> codes, scale = encode_rows_reference(np.eye(1, 32, dtype=np.float32), 4)
    >>> codes.shape, hex(codes[0, 0]), scale.round(4).tolist()
    ((1, 16), '0x88', [-0.022099999710917473])
    """
    if bits == 8:
        return _encode_codes_reference(x, np.abs(x).max(axis=-1), 127)
    if bits == 4:
        transformed = hadamard_reference(x)
        low, high = transformed.min(axis=-1), transformed.max(axis=-1)
        codes, scale = _encode_codes_reference(transformed, np.where(high > -low, high, low), -8)
        blocks = codes.view(np.uint8).reshape(*x.shape[:-1], x.shape[-1] // BLOCK, 2, BLOCK // 2)
        packed = blocks[..., 0, :] & 15 | blocks[..., 1, :] << 4
        return packed.reshape(*x.shape[:-1], x.shape[-1] // 2), scale
    none = np.empty((*x.shape[:-2], 0), np.float32)
    if bits == 32:
        return x, none
    raw = x.view(np.uint32).astype(np.uint64)
    rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
    stored = np.where(np.isnan(x), (raw >> 16) | 0x40, rounded)
    return stored.astype(np.uint16), none


def _encode_codes_reference(x: np.ndarray, extreme: np.ndarray, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows, where the number `extreme` has the code `at`."""
    extreme = np.where(np.isfinite(extreme), np.where(np.abs(extreme) < _SMALLEST, 0, extreme), np.nan)
    extreme = extreme.astype(np.float32)
    usable = (np.abs(extreme) > 0)[..., None]
    inverse = np.divide(np.float32(at), extreme[..., None], where=usable, out=np.zeros_like(usable, np.float32))
    codes = np.rint(np.where(usable, x, 0) * inverse).clip(-abs(at), 127 if at > 0 else 7)
    return codes.astype(np.int8), extreme / np.float32(at)


def decode_rows_reference(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Specify in plain NumPy the float32 numbers that elements stand for; the inverse of `encode_rows_reference`.

    Examples
    --------
    >>> decode_rows_reference(np.array([[127, -50]], np.int8), np.array([0.02], np.float32)).round(2).tolist()
    [[2.5399999618530273, -1.0]]
    >>> decode_rows_reference(np.full((1, 16), 0x88, np.uint8), np.array([-2.0], np.float32))[0, :2].round(4).tolist()
    [90.50969696044922, 0.0]
    """
    numbers: np.ndarray = stored
    if stored.dtype == np.int8:
        numbers = stored * scale[..., None]
    elif stored.dtype == np.uint8:
        size = stored.shape[-1]
        blocks = stored.reshape(*stored.shape[:-1], 2 * size // BLOCK, BLOCK // 2).view(np.int8)
        codes = np.stack([blocks << 4 >> 4, blocks >> 4], axis=-2)
        numbers = hadamard_reference(codes.reshape(*stored.shape[:-1], 2 * size) * scale[..., None])
    elif stored.dtype == np.uint16:
        numbers = (stored.astype(np.uint32) << 16).view(np.float32)
    return numbers


def row_elements(stored: np.ndarray) -> int:
    """Elements of a row of an array (..., n), two of them a byte in 4 bits; compiled code only."""
    raise NotImplementedError


@overload(row_elements, strict=False)
def _row_elements(stored: Any) -> Any:
    if stored.dtype == types.uint8:
        return lambda stored: 2 * stored.shape[stored.ndim - 1]
    return lambda stored: stored.shape[stored.ndim - 1]


def transform_row(row: np.ndarray, room: np.ndarray, stored: np.ndarray) -> None:
    """Transform float32 (n,) in place as the rows of `stored` are, or back, if they are; compiled code only.

    `room` is float32 (n,) too, and its elements are lost.
    """
    raise NotImplementedError


@overload(transform_row, strict=False)
def _transform_row(row: Any, room: Any, stored: Any) -> Any:
    if stored.dtype == types.uint8:
        return lambda row, room, stored: hadamard(row, room)  # noqa: ARG005, Numba wants all names
    return lambda row, room, stored: None  # noqa: ARG005


def store_row(row: np.ndarray, stored: np.ndarray, scale: np.ndarray, position: int, room: np.ndarray) -> None:
    """Write float32 (head_dim,) to `stored[position]`, zeros behind it, and the scale if any; compiled code only.

    `room` is float32 (2, row_elements(stored)), and its elements are lost.
    """
    raise NotImplementedError


@overload(store_row, strict=False)
def _store_row(row: Any, stored: Any, scale: Any, position: Any, room: Any) -> Any:
    if stored.dtype == types.uint16:
        return lambda row, stored, scale, position, room: _store_bfloat(row, stored[position], scale)  # noqa: ARG005
    if stored.dtype == types.int8:
        return lambda row, stored, scale, position, room: _store_8_bits(row, stored[position], scale[position:])  # noqa: ARG005
    if stored.dtype == types.uint8:
        return lambda row, stored, scale, position, room: _store_4_bits(row, stored[position], scale[position:], room)
    return lambda row, stored, scale, position, room: _store_float(row, stored[position], scale)  # noqa: ARG005


@jit
def _store_float(row: np.ndarray, stored: np.ndarray, scale: np.ndarray) -> None:
    stored[row.size :] = 0
    for i in range(row.size):
        stored[i] = row[i]


@jit
def _store_bfloat(row: np.ndarray, stored: np.ndarray, scale: np.ndarray) -> None:
    stored[row.size :] = 0
    for i in range(row.size):
        bits = bits_of(row[i])
        # The sum wraps around for NaN only, of which another is chosen.
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF + ((bits >> 16) & 1))) >> 16)
        quiet = np.uint32((bits >> 16) | 0x40)
        stored[i] = np.uint16(quiet if (bits & 0x7FFFFFFF) > 0x7F800000 else rounded)


@jit
def _store_8_bits(row: np.ndarray, stored: np.ndarray, scale: np.ndarray) -> None:
    stored[row.size :] = 0
    largest = np.int32(0)  # bits order as sizes do, NaN above all
    for i in range(row.size):
        largest = max(largest, np.int32(bits_of(row[i]) & 0x7FFFFFFF))
    size = float_of(np.uint32(largest))
    if largest >= 0x7F800000:
        size = np.float32(np.nan)
    if size < _SMALLEST:
        size = np.float32(0.0)
    scale[0] = size / _LARGEST_CODE
    inverse = _LARGEST_CODE / size
    if not inverse < np.float32(np.inf):
        stored[:] = 0
        return
    for i in range(row.size):
        stored[i] = np.int8(_nearest_code(row[i] * inverse, -_LARGEST_CODE, _LARGEST_CODE))


@jit
def _store_4_bits(row: np.ndarray, stored: np.ndarray, scale: np.ndarray, room: np.ndarray) -> None:
    transformed = room[0]
    transformed[: row.size] = row
    transformed[row.size :] = 0
    hadamard(transformed, room[1])
    low_bits, high_bits = extreme_bits(room.view(np.uint32), 0, 0, transformed.size)
    low, high = float_of(low_bits), float_of(high_bits)
    extreme = high if high > -low else low
    # Not finite, NaN included; a comparison with it is false.
    if not (low >= -_MOST and high <= _MOST):
        extreme = np.float32(np.nan)
    if abs(extreme) < _SMALLEST:
        extreme = np.float32(0.0)
    scale[0] = extreme / np.float32(-8.0)
    inverse = np.float32(-8.0) / extreme
    if not abs(inverse) < np.float32(np.inf):
        stored[:] = 0
        return
    half, lowest, highest = BLOCK // 2, np.float32(-8.0), np.float32(7.0)
    for block in range(0, stored.size, half):
        for i in range(half):
            first = _nearest_code(transformed[2 * block + i] * inverse, lowest, highest)
            second = _nearest_code(transformed[2 * block + half + i] * inverse, lowest, highest)
            stored[block + i] = np.uint8(first & 15 | second << 4)


@jit
def _nearest_code(x: np.float32, lowest: np.float32, highest: np.float32) -> np.int32:
    """Round a number to a code, ties to even."""
    rounded = np.float32(np.float32(x + _ROUND) - _ROUND)
    return np.int32(min(max(rounded, lowest), highest))
