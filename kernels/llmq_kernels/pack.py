"""Codes to bit stream and back; see `llmq_kernels.layout` for the layout.

`packing.pack_row` and `unpack_columns` are the only places that know it: every kernel goes through them.
"""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import matrix_of
from llmq_kernels.jit import jit, jit_enabled
from llmq_kernels.layout import row_bytes
from llmq_kernels.packing import pack_row

__all__ = ["pack", "pack_reference", "unpack", "unpack_reference"]


def pack_reference(codes: np.ndarray, bits: int) -> np.ndarray:
    """Specify `pack` in plain NumPy: the low `bits` bits of each code, in order, rows padded with zeros to 32 bits.

    Examples
    --------
    >>> pack_reference(np.array([[0, 1, 8, 9, 10, 11, 12, 15]], np.uint8), 4).view("<u4").item() == 0xFCBA9810
    True
    >>> pack_reference(np.array([[1, 2, 7]], np.uint8), 3).tolist()
    [[209, 1, 0, 0]]
    """
    rows, columns = codes.shape
    stream = ((codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1).reshape(rows, columns * bits)
    packed = np.packbits(stream, axis=1, bitorder="little")
    return np.pad(packed, ((0, 0), (0, row_bytes(columns, bits) - packed.shape[1])))


def unpack_reference(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Specify `unpack` in plain NumPy.

    Examples
    --------
    >>> unpack_reference(np.array([[209, 1, 0, 0]], np.uint8), 3, 3).tolist()
    [[1, 2, 7]]
    """
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : columns * bits]
    return np.packbits(stream.reshape(-1, columns, bits), axis=2, bitorder="little")[:, :, 0]


@jit
def unpack_columns(packed: np.ndarray, bits: int, row: int, start: int, count: int, codes: np.ndarray) -> None:
    """Unpack some columns of one row; reads no byte that holds none of them.

    Parameters
    ----------
    packed : uint8 (rows, row_bytes)
    bits : int
        1 to 8.
    row, start, count : int
        Columns `start` to `start + count` of `row`; `start` is a multiple of 8.
    codes : uint8 (at least count,)
    """
    # Unsigned indices spare the test for negative ones, which would keep loops scalar.
    base = np.uint64(start // 8 * bits)
    blocks = count // 8  # 8 codes fill whole bytes
    if bits == 8:
        for i in range(8 * blocks):
            codes[i] = packed[row, base + np.uint64(i)]
    elif bits == 4:
        for i in range(4 * blocks):
            byte = packed[row, base + np.uint64(i)]
            codes[2 * i] = byte & 15
            codes[2 * i + 1] = byte >> 4
    elif bits == 2:
        for i in range(2 * blocks):
            byte = packed[row, base + np.uint64(i)]
            codes[4 * i] = byte & 3
            codes[4 * i + 1] = (byte >> 2) & 3
            codes[4 * i + 2] = (byte >> 4) & 3
            codes[4 * i + 3] = byte >> 6
    else:
        _unpack_blocks(packed, bits, row, base, blocks, codes)
    word = np.uint64(0)
    for j in range(((count - 8 * blocks) * bits + 7) // 8):
        word |= np.uint64(packed[row, base + np.uint64(blocks * bits + j)]) << np.uint64(8 * j)
    for i in range(8 * blocks, count):
        codes[i] = np.uint8(word & np.uint64((1 << bits) - 1))
        word >>= np.uint64(bits)


@jit
def _unpack_blocks(packed: np.ndarray, bits: int, row: int, base: np.uint64, blocks: int, codes: np.ndarray) -> None:
    """Unpack `blocks` times 8 codes of any width, `bits` bytes each, from byte `base` of a row on."""
    mask = np.uint64((1 << bits) - 1)
    for block in range(blocks):
        word = np.uint64(0)
        for j in range(bits):
            word |= np.uint64(packed[row, base + np.uint64(block * bits + j)]) << np.uint64(8 * j)
        for j in range(8):
            codes[8 * block + j] = np.uint8((word >> np.uint64(bits * j)) & mask)


@jit
def _pack(codes: np.ndarray, bits: int, packed: np.ndarray) -> None:
    """Pack all rows of uint8 (rows, columns) into uint8 (rows, row_bytes)."""
    for row in range(codes.shape[0]):
        pack_row(codes[row], bits, packed[row])


@jit
def _unpack(packed: np.ndarray, bits: int, codes: np.ndarray) -> None:
    """Unpack all rows of uint8 (rows, row_bytes) into uint8 (rows, columns)."""
    for row in range(codes.shape[0]):
        unpack_columns(packed, bits, row, 0, codes.shape[1], codes[row])


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes into rows of a little-endian bit stream.

    Parameters
    ----------
    codes : uint8 (rows, columns)
        Each below `2**bits`.
    bits : int
        Width of a code, 1 to 8.

    Returns
    -------
    uint8 (rows, row_bytes(columns, bits))

    Raises
    ------
    TypeError
        Codes are not uint8.
    ValueError
        A width out of range, not a matrix, or a code too large for the width.
    """
    _check_bits(bits)
    if codes.dtype != np.uint8:
        raise TypeError(f"codes must be uint8, not {codes.dtype}")
    codes = matrix_of("codes", codes, np.uint8)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} needs more than {bits} bits")
    if not jit_enabled():
        return pack_reference(codes, bits)
    packed = np.empty((codes.shape[0], row_bytes(codes.shape[1], bits)), np.uint8)
    _pack(codes, bits, packed)
    return packed


def unpack(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Unpack rows of codes; the inverse of `pack`.

    Parameters
    ----------
    packed : uint8 (rows, row_bytes(columns, bits))
    bits : int
        Width of a code, 1 to 8.
    columns : int
        Codes in a row.

    Returns
    -------
    uint8 (rows, columns)

    Raises
    ------
    TypeError
        The stream is not uint8.
    ValueError
        A width out of range, or a shape that does not fit.
    """
    _check_bits(bits)
    if packed.dtype != np.uint8:
        raise TypeError(f"packed must be uint8, not {packed.dtype}")
    packed = matrix_of("packed", packed, np.uint8, row_bytes(columns, bits))
    codes = np.empty((packed.shape[0], columns), np.uint8)
    _unpack(packed, bits, codes)
    return codes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {bits}")
