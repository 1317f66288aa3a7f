"""Walsh-Hadamard transform of rows: spreads a few large elements over many, so that one scale serves them all."""

from __future__ import annotations

import math

import numpy as np

from llmq_kernels.jit import jit

__all__ = ["hadamard", "hadamard_reference"]


def hadamard_reference(x: np.ndarray) -> np.ndarray:
    """Transform float32 (..., n) rows in plain NumPy, in blocks of the largest power of two that divides n.

    The matrix is symmetric and orthogonal: products of two rows stay, and to transform twice gives the row again. What
    is beyond the range of float32 becomes infinite or NaN.

    Examples
    --------
    >>> hadamard_reference(np.array([4.0, 0.0, 0.0, 0.0], np.float32)).tolist()
    [2.0, 2.0, 2.0, 2.0]
    >>> hadamard_reference(np.array([2.0, 2.0, 2.0, 2.0], np.float32)).tolist()
    [4.0, 0.0, 0.0, 0.0]
    """
    size = x.shape[-1] & -x.shape[-1]
    x = x * np.float32(1 / math.sqrt(max(size, 1)))
    half = 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        half *= 2
    return x


@jit
def hadamard(row: np.ndarray, room: np.ndarray) -> None:
    """Do what `hadamard_reference` specifies to float32 (n,), in place, with room for as many; for compiled code.

    Each stage takes neighbours and puts sums before differences, so that after all of them each number is at its place
    again (Pease 1968): loops are long and alike, which vectors need.
    """
    size = row.size & -row.size
    factor = np.float32(1 / math.sqrt(max(size, 1)))
    for start in range(0, row.size, max(size, 1)):
        x, y = row[start : start + size], room[start : start + size]
        for i in range(size):
            x[i] *= factor
        stages = 0
        while 1 << stages < size:
            if stages % 2:
                _take_neighbours(y, x)
            else:
                _take_neighbours(x, y)
            stages += 1
        if stages % 2:
            for i in range(size):
                x[i] = y[i]


@jit
def _take_neighbours(x: np.ndarray, y: np.ndarray) -> None:
    half = x.size // 2
    sums, differences = y[:half], y[half:]
    for i in range(half):
        sums[i] = x[2 * i] + x[2 * i + 1]
    for i in range(half):
        differences[i] = x[2 * i] - x[2 * i + 1]
