"""`KeyValues`: the keys and values that a layer attends to, in 32, 16 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from llmq_kernels.attention_rows import PADDED
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit

__all__ = ["KeyValues", "decode_rows_reference", "encode_rows_reference", "padded", "store_row"]

_DTYPES: Final[dict[int, type]] = {32: np.float32, 16: np.uint16, 8: np.int8}
_ROUND: Final = np.float32(12582912.0)  # adding and subtracting it rounds to the nearest integer, ties to even
_LARGEST_CODE: Final = np.float32(127.0)
_SMALLEST: Final = np.float32(1e-30)


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Room for the keys and values of a layer. A head's positions follow each other, as attention reads them.

    Parameters
    ----------
    head_dim : int
        Elements of a head.
    keys, values : float32, uint16 or int8 (kv_heads, capacity, width)
        uint16 holds the bits of bfloat16; int8 holds codes. The width is `head_dim` rounded up to a multiple of 16, and
        what is beyond `head_dim` are zeros.
    key_scale, value_scale : float32 (kv_heads, capacity), or (kv_heads, 0) unless int8
        A number is its code times the scale of its head and position.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """

    head_dim: int
    keys: np.ndarray
    values: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray

    def __post_init__(self) -> None:
        heads, capacity = self.keys.shape[:2] if self.keys.ndim == 3 else (0, 0)
        scales = heads, capacity if self.keys.dtype == np.int8 else 0
        if self.keys.dtype not in (np.float32, np.uint16, np.int8) or self.values.dtype != self.keys.dtype:
            raise TypeError(f"keys and values must be float32, uint16 or int8, not {self.keys.dtype}")
        if self.key_scale.dtype != np.float32 or self.value_scale.dtype != np.float32:
            raise TypeError("scales must be float32")
        if heads < 1 or self.values.shape != self.keys.shape or self.keys.shape[2] != padded(self.head_dim):
            raise ValueError(
                f"keys {self.keys.shape} and values {self.values.shape} do not fit heads of {self.head_dim}"
            )
        if self.key_scale.shape != scales or self.value_scale.shape != scales:
            raise ValueError(f"scales must be {scales}, not {self.key_scale.shape}, {self.value_scale.shape}")
        for array in self.arrays:
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise ValueError("keys, values and scales must be C-contiguous and aligned")

    @classmethod
    def empty(cls, shape: tuple[int, int, int], bits: int) -> KeyValues:
        """Make room, not initialised.

        Parameters
        ----------
        shape : (int, int, int)
            Heads of keys, capacity in tokens, elements of a head.
        bits : {32, 16, 8}
            Of an element.

        Raises
        ------
        ValueError
            Other bits.
        MemoryError
            There is no such room.
        """
        if bits not in _DTYPES:
            raise ValueError(f"bits must be 32, 16 or 8, not {bits}")
        heads, capacity, head_dim = shape
        room = heads, capacity, padded(head_dim)
        scales = heads, capacity if bits == 8 else 0
        keys: np.ndarray = np.empty(room, _DTYPES[bits])
        values: np.ndarray = np.empty(room, _DTYPES[bits])
        return cls(head_dim, keys, values, np.empty(scales, np.float32), np.empty(scales, np.float32))

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray, bits: int = 32) -> KeyValues:
        """Hold copies of given keys and values, float32 (kv_heads, capacity, head_dim)."""
        head_dim = keys.shape[2]
        beyond = (0, 0), (0, 0), (0, padded(head_dim) - head_dim)
        (keys, key_scale), (values, value_scale) = (
            encode_rows_reference(np.pad(x, beyond), bits) for x in (keys, values)
        )
        return cls(head_dim, keys, values, key_scale, value_scale)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keys, values, and the scales of both."""
        return self.keys, self.values, self.key_scale, self.value_scale

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return int(self.keys.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def grown(self, capacity: int, length: int) -> KeyValues:
        """Make larger room with the first `length` tokens in it."""
        larger = KeyValues.empty((self.keys.shape[0], capacity, self.head_dim), 8 * self.keys.itemsize)
        for new, old in zip(larger.arrays, self.arrays, strict=True):
            new[:, :length] = old[:, :length]
        return larger


def padded(head_dim: int) -> int:
    """Elements that a head of `head_dim` takes room for.

    Examples
    --------
    >>> [padded(n) for n in (64, 72, 80)]
    [64, 80, 80]
    """
    return -(-head_dim // PADDED) * PADDED


def encode_rows_reference(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Specify in plain NumPy how float32 (..., n) rows are held: elements, and the scales of 8 bits (else none).

    In 8 bits the scale is a row's largest size over 127, and an element is off by half a scale at most; a row of zeros,
    or of sizes below 1e-30, has scale 0; with NaN or infinity in it the whole row becomes NaN. In 16 bits an element is
    off by 1/256 of itself at most, and stays NaN or infinite.

    Examples
    --------
    >>> codes, scale = encode_rows_reference(np.array([[2.54, -1.0, 0.0]], np.float32), 8)
    >>> codes.tolist(), scale.round(4).tolist()
    ([[127, -50, 0]], [0.019999999552965164])
    >>> [hex(bits) for bits in encode_rows_reference(np.array([1.0, 1.00390625], np.float32), 16)[0]]
    ['0x3f80', '0x3f80']
    """
    if bits == 8:
        largest = np.abs(x).max(axis=-1)
        largest = np.where(np.isfinite(largest), np.where(largest < _SMALLEST, 0, largest), np.nan).astype(np.float32)
        usable = (largest > 0)[..., None]
        inverse = np.divide(np.float32(127.0), largest[..., None], where=usable, out=np.zeros_like(usable, np.float32))
        codes = np.rint(np.where(usable, x, 0) * inverse).clip(-127, 127)
        return codes.astype(np.int8), largest / np.float32(127.0)
    none = np.empty((*x.shape[:-2], 0), np.float32)
    if bits == 32:
        return x, none
    raw = x.view(np.uint32).astype(np.uint64)
    rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
    stored = np.where(np.isnan(x), (raw >> 16) | 0x40, rounded)
    return stored.astype(np.uint16), none


def decode_rows_reference(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Specify in plain NumPy the float32 numbers that elements stand for; the inverse of `encode_rows_reference`.

    Examples
    --------
    >>> decode_rows_reference(np.array([[127, -50]], np.int8), np.array([0.02], np.float32)).round(2).tolist()
    [[2.5399999618530273, -1.0]]
    """
    if stored.dtype == np.int8:
        numbers: np.ndarray = stored * scale[..., None]
        return numbers
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


# What depends on how elements are held is chosen by the type of an argument while compiling.


def store_row(row: np.ndarray, stored: np.ndarray, scale: np.ndarray, position: int) -> None:
    """Write float32 (head_dim,) to `stored[position]`, zeros behind it, and in 8 bits its scale; compiled code only."""
    raise NotImplementedError


@overload(store_row, strict=False)
def _store_row(row: Any, stored: Any, scale: Any, position: Any) -> Any:
    if stored.dtype == types.uint16:
        return lambda row, stored, scale, position: _store_bfloat(row, stored[position], scale)
    if stored.dtype == types.int8:
        return lambda row, stored, scale, position: _store_codes(row, stored[position], scale[position : position + 1])
    return lambda row, stored, scale, position: _store_float(row, stored[position], scale)


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
def _store_codes(row: np.ndarray, stored: np.ndarray, scale: np.ndarray) -> None:
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
        code = np.float32(np.float32(row[i] * inverse + _ROUND) - _ROUND)
        stored[i] = np.int8(np.int32(min(max(code, -_LARGEST_CODE), _LARGEST_CODE)))
