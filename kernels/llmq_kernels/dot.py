"""Products of float32 activations with a tile of float32 weight rows: the inner part of every float matmul."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmq_kernels.doors import pieces
from llmq_kernels.jit import jit, threads

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "add_tile", "row_pieces"]

TILE_ROWS = 16
TILE_COLUMNS = 512
"""A tile of 32 KiB and a block of x fit in the first-level cache, or stream from the second."""

_MOST: Final = 1_500_000_000
"""Products of a thread in one call: about a tenth of a second."""

# Sums may be reordered and fused, for vectors; NaN and infinity still do what they should.
_SUMS = {"reassoc", "contract", "nsz"}


@jit(fastmath=_SUMS)
def _add_4x4(x: np.ndarray, count: int, tile: np.ndarray, row: int, out: np.ndarray, place: tuple[int, int]) -> None:
    """Add the products of x, float32 (4, at least count), and 4 rows of the tile to 4 by 4 elements at `place`."""
    token, column = place
    s00 = s01 = s02 = s03 = np.float32(0.0)
    s10 = s11 = s12 = s13 = np.float32(0.0)
    s20 = s21 = s22 = s23 = np.float32(0.0)
    s30 = s31 = s32 = s33 = np.float32(0.0)
    for k in range(count):
        a, b, c, d = tile[row, k], tile[row + 1, k], tile[row + 2, k], tile[row + 3, k]
        p = x[0, k]
        s00 += p * a
        s01 += p * b
        s02 += p * c
        s03 += p * d
        p = x[1, k]
        s10 += p * a
        s11 += p * b
        s12 += p * c
        s13 += p * d
        p = x[2, k]
        s20 += p * a
        s21 += p * b
        s22 += p * c
        s23 += p * d
        p = x[3, k]
        s30 += p * a
        s31 += p * b
        s32 += p * c
        s33 += p * d
    out[token, column] += s00
    out[token, column + 1] += s01
    out[token, column + 2] += s02
    out[token, column + 3] += s03
    out[token + 1, column] += s10
    out[token + 1, column + 1] += s11
    out[token + 1, column + 2] += s12
    out[token + 1, column + 3] += s13
    out[token + 2, column] += s20
    out[token + 2, column + 1] += s21
    out[token + 2, column + 2] += s22
    out[token + 2, column + 3] += s23
    out[token + 3, column] += s30
    out[token + 3, column + 1] += s31
    out[token + 3, column + 2] += s32
    out[token + 3, column + 3] += s33


@jit(fastmath=_SUMS)
def _dot(x: np.ndarray, i: int, tile: np.ndarray, j: int, count: int) -> np.float32:
    """Return the product of row `i` of x and row `j` of the tile."""
    total = np.float32(0.0)
    for k in range(count):
        total += x[i, k] * tile[j, k]
    return total


@jit
def add_tile(x: np.ndarray, start: int, count: int, tile: np.ndarray, out: np.ndarray, first: int) -> None:
    """Add the products of `count` columns of x from `start` on and a tile to columns of `out`.

    Parameters
    ----------
    x : float32 (tokens, columns)
    tile : float32 (TILE_ROWS, TILE_COLUMNS)
        The weight's columns `start` to `start + count`, of its rows from `first` on.
    out : float32 (tokens, rows)
    """
    tokens = x.shape[0]
    rows = min(TILE_ROWS, out.shape[1] - first)
    block = np.empty((4, TILE_COLUMNS), np.float32)
    for token in range(0, tokens, 4):
        n = min(4, tokens - token)
        for t in range(n):
            for k in range(count):
                block[t, k] = x[token + t, np.uint64(start) + np.uint64(k)]
        done = rows - rows % 4 if n == 4 else 0
        for row in range(0, done, 4):
            _add_4x4(block, count, tile, row, out, (token, first + row))
        for t in range(n):
            for row in range(done, rows):
                out[token + t, first + row] += _dot(block, t, tile, row, count)


def row_pieces(x: np.ndarray, rows: int) -> list[slice]:
    """Cut the chunks of `TILE_ROWS` rows that float32 (tokens, columns) meets, so that Ctrl-C is served in between."""
    return pieces(-(-rows // TILE_ROWS), TILE_ROWS * x.size, _MOST * threads())
