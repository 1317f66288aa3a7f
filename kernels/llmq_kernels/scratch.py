"""`Scratch`: arrays that one call leaves behind for the next; and memory whose parts begin with a cache line."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Scratch", "aligned_zeros", "laid_out"]

_LINE = 64
"""Bytes of a cache line, and of the widest vector."""


def aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Make zeros, uint8, whose first byte begins a cache line: vectors that cross into another take twice as long.

    Examples
    --------
    >>> aligned_zeros((3, 5)).ctypes.data % 64
    0
    """
    size = math.prod(shape)
    room = np.zeros(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].reshape(shape)


def laid_out(parts: dict[int, int]) -> tuple[dict[int, int], int]:
    """Where parts of some bytes begin, one after the other, each with a cache line; and how long they are together.

    Examples
    --------
    >>> laid_out({7: 100, 3: 1})
    ({7: 0, 3: 128}, 192)
    """
    starts, end = {}, 0
    for name, size in parts.items():
        starts[name] = end
        end += -(-size // _LINE) * _LINE
    return starts, end


class Scratch:
    """Room to work in, kept between calls so that none of them allocates; for one Python thread at a time."""

    def __init__(self) -> None:
        self._rooms: dict[str, np.ndarray] = {}

    def room(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """Room of a name as an array of `shape`, with whatever was left in it; it grows where it does not suffice.

        A name always has the same `dtype`.

        Examples
        --------
        >>> scratch = Scratch()
        >>> scratch.room("sums", (2, 3))[:] = 7
        >>> scratch.room("sums", (2, 2)).tolist()
        [[7.0, 7.0], [7.0, 7.0]]
        """
        size = math.prod(shape)
        found = self._rooms.get(name)
        if found is None or found.size < size:
            found = self._rooms[name] = np.empty(size, dtype)
        return found[:size].reshape(shape)
