"""`KVCache`: the keys and values of the tokens a decoder has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.architectures import DecoderConfig

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of every layer, float32 (n_kv_heads, capacity, head_dim) each; grows as needed.

    Memory is taken from the system where it is first written, so spare capacity costs nothing.

    Parameters
    ----------
    config : DecoderConfig
    capacity : int
        Tokens to make room for at first.

    Raises
    ------
    ResourceError
        Not enough memory.
    """

    def __init__(self, config: DecoderConfig, capacity: int) -> None:
        self._shape = (config.n_kv_heads, config.head_dim)
        self.capacity = max(1, capacity)
        self.tokens: list[int] = []
        """Ids of the tokens whose keys and values it holds."""
        self._keys = [self._allocate(self.capacity) for _ in range(config.n_layers)]
        self._values = [self._allocate(self.capacity) for _ in range(config.n_layers)]

    @property
    def length(self) -> int:
        """Number of tokens in it."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of address space it takes."""
        return sum(array.nbytes for array in (*self._keys, *self._values))

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, at least doubling the capacity where it does not suffice."""
        if length <= self.capacity:
            return
        capacity = max(length, 2 * self.capacity)
        for arrays in (self._keys, self._values):
            for layer, old in enumerate(arrays):
                new = self._allocate(capacity)
                new[:, : self.length] = old[:, : self.length]
                arrays[layer] = new
        self.capacity = capacity

    def store(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write a layer's keys and values, float32 (tokens, n_kv_heads, head_dim), behind those of `tokens`.

        Returns
        -------
        (keys, values) : float32 (n_kv_heads, capacity, head_dim)
            The layer's whole cache.
        """
        stop = self.length + keys.shape[0]
        self._keys[layer][:, self.length : stop] = keys.transpose(1, 0, 2)
        self._values[layer][:, self.length : stop] = values.transpose(1, 0, 2)
        return self._keys[layer], self._values[layer]

    def extend(self, tokens: Iterable[int]) -> None:
        """Count tokens as seen, once every layer has stored them."""
        self.tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from number `length` on; ValueError if there are not so many."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be 0 to {self.length}, not {length}")
        del self.tokens[length:]

    def _allocate(self, capacity: int) -> np.ndarray:
        heads, head_dim = self._shape
        try:
            return np.empty((heads, capacity, head_dim), np.float32)
        except (MemoryError, ValueError):  # ValueError: larger than the address space
            raise ResourceError(
                f"not enough memory for a cache of {capacity} tokens", hint="ask for fewer tokens"
            ) from None
