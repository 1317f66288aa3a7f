"""Small arrays of codes as little-endian bit streams along their first dimension, in plain NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["pack_columns", "spread_sign_codes", "unpack_columns"]


def pack_columns(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack every column: code `i` of a column takes bits ``[i*bits, (i+1)*bits)`` of the column's words.

    Parameters
    ----------
    codes : uint8 (rows, columns)
        Below ``2**bits``.
    bits : int
        1 to 8.

    Returns
    -------
    int32 (ceil(rows * bits / 32), columns)

    >>> [hex(word) for word in pack_columns(np.arange(8, dtype=np.uint8)[:, None], 4)[:, 0].view(np.uint32)]
    ['0x76543210']
    """
    rows, columns = codes.shape
    words = -(-rows * bits // 32)
    stream = ((codes.T[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1).reshape(columns, rows * bits)
    padded = np.zeros((columns, words * 32), np.uint8)
    padded[:, : rows * bits] = stream
    packed = np.packbits(padded, axis=1, bitorder="little").view("<i4")  # (columns, words)
    return np.ascontiguousarray(packed.T)


def unpack_columns(packed: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """Unpack what `pack_columns` made.

    Parameters
    ----------
    packed : int32 (ceil(rows * bits / 32), columns)
    bits : int
        1 to 8.
    rows : int
        Codes in a column.

    Returns
    -------
    uint8 (rows, columns)
    """
    columns = packed.shape[1]
    stream = np.unpackbits(
        np.ascontiguousarray(packed.T).view(np.uint8), axis=1, count=rows * bits, bitorder="little"
    )  # (columns, rows * bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes = (stream.reshape(columns, rows, bits) * weights).sum(axis=2, dtype=np.uint8)
    return np.ascontiguousarray(codes.T)


def spread_sign_codes(packed: np.ndarray, columns: int) -> np.ndarray:
    """Turn 1-bit codes 0 and 1 into 2-bit codes 1 and 3, with zeros behind the last.

    Parameters
    ----------
    packed : uint8 (rows, 4 * ceil(columns / 32))
        Bit streams of 1-bit codes.
    columns : int
        Codes in a row.

    Returns
    -------
    uint8 (rows, 4 * ceil(columns / 16))

    >>> spread_sign_codes(np.array([[0b0101, 0, 0, 0]], np.uint8), 4)
    array([[119,   0,   0,   0]], dtype=uint8)
    """
    width = 4 * -(-columns // 16)
    bit = (np.arange(256)[:, None] >> np.arange(8)) & 1  # (256, 8)
    table = ((1 | bit << 1) << (2 * np.arange(8))).sum(axis=1).astype("<u2")
    spread = table[packed].view(np.uint8)[:, :width]
    behind = np.packbits(np.arange(8 * width) < 2 * columns, bitorder="little")
    return np.ascontiguousarray(spread & behind)
