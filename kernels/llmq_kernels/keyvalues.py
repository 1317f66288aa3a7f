"""`KeyValues`: the keys and values that a layer attends to, in 32, 16, 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from llmq_kernels.keyvalue_rows import encode_rows_reference, padded

__all__ = ["KV_BITS", "KeyValues"]

_DTYPES: Final[dict[int, type]] = {32: np.float32, 16: np.uint16, 8: np.int8, 4: np.uint8}
_BITS: Final = {np.dtype(dtype): bits for bits, dtype in _DTYPES.items()}

KV_BITS: Final = tuple(_DTYPES)
"""Bits of an element that a cache may have, most first."""


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Room for the keys and values of a layer. A head's positions follow each other, as attention reads them.

    Parameters
    ----------
    head_dim : int
        Elements of a head.
    keys, values : float32, uint16, int8 or uint8 (kv_heads, capacity, width)
        uint16 holds the bits of bfloat16, int8 codes and uint8 pairs of codes, as `encode_rows_reference` says. The
        width is `padded` elements, half as many of uint8; those beyond `head_dim` are as good as zeros.
    key_scale, value_scale : float32 (kv_heads, capacity), or (kv_heads, 0) unless there are codes
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
        if self.keys.dtype not in _BITS or self.values.dtype != self.keys.dtype:
            raise TypeError(f"keys and values must be float32, uint16, int8 or uint8, not {self.keys.dtype}")
        if self.key_scale.dtype != np.float32 or self.value_scale.dtype != np.float32:
            raise TypeError("scales must be float32")
        heads, capacity = self.keys.shape[:2] if self.keys.ndim == 3 else (0, 0)
        fits = heads > 0 and self.keys.shape[2] * 8 * self.keys.itemsize == self.width * self.bits
        if not fits or self.values.shape != self.keys.shape:
            raise ValueError(
                f"keys {self.keys.shape} and values {self.values.shape} do not fit heads of {self.head_dim}"
            )
        scales = heads, capacity if self.bits <= 8 else 0
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
        bits : {32, 16, 8, 4}
            Of an element.

        Raises
        ------
        ValueError
            Other bits.
        MemoryError
            There is no such room.
        """
        if bits not in _DTYPES:
            raise ValueError(f"bits must be 32, 16, 8 or 4, not {bits}")
        heads, capacity, head_dim = shape
        room = heads, capacity, padded(head_dim, bits) // (2 if bits == 4 else 1)
        scales = heads, capacity if bits <= 8 else 0
        keys: np.ndarray = np.empty(room, _DTYPES[bits])
        values: np.ndarray = np.empty(room, _DTYPES[bits])
        return cls(head_dim, keys, values, np.empty(scales, np.float32), np.empty(scales, np.float32))

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray, bits: int = 32) -> KeyValues:
        """Hold copies of given keys and values, float32 (kv_heads, capacity, head_dim)."""
        head_dim = keys.shape[2]
        beyond = (0, 0), (0, 0), (0, padded(head_dim, bits) - head_dim)
        (keys, key_scale), (values, value_scale) = (
            encode_rows_reference(np.pad(x, beyond), bits) for x in (keys, values)
        )
        return cls(head_dim, keys, values, key_scale, value_scale)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Keys, values, and the scales of both."""
        return self.keys, self.values, self.key_scale, self.value_scale

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return _BITS[self.keys.dtype]

    @property
    def width(self) -> int:
        """Elements that a head takes room for."""
        return padded(self.head_dim, self.bits)

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
        larger = KeyValues.empty((self.keys.shape[0], capacity, self.head_dim), self.bits)
        for new, old in zip(larger.arrays, self.arrays, strict=True):
            new[:, :length] = old[:, :length]
        return larger
