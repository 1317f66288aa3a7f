"""`Scratch`: arrays that one call leaves behind for the next."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Scratch"]


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
