"""`KVCache`: the keys and values of the tokens a decoder has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.errors import ResourceError, UsageError
from llmq_kernels.keyvalue_rows import padded
from llmq_kernels.keyvalues import KV_BITS, KeyValues
from llmq_kernels.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.architectures import DecoderConfig

__all__ = ["KVCache", "kv_bytes"]


def kv_bytes(config: DecoderConfig, tokens: int, bits: int) -> int:
    """Bytes of the keys and values of `tokens` tokens."""
    scale = 4 if bits <= 8 else 0
    return 2 * config.n_layers * config.n_kv_heads * tokens * (padded(config.head_dim, bits) * bits // 8 + scale)


class KVCache:
    """Keys and values of every layer; grows as needed.

    Memory is taken from the system where it is first written, so spare capacity costs nothing.

    Parameters
    ----------
    config : DecoderConfig
    capacity : int
        Tokens to make room for at first.
    bits : {32, 16, 8, 4}
        Of an element: float32, bfloat16, or integers of 8 or 4 bits with a scale for each token and head.

    Raises
    ------
    UsageError
        Other bits.
    ResourceError
        Not enough memory.

    Attributes
    ----------
    layers : list of KeyValues
    tokens : list of int
        Ids of the tokens whose keys and values it holds.
    scratch : Scratch
        Arrays that a decoder works in, kept from one token to the next.
    """

    def __init__(self, config: DecoderConfig, capacity: int, bits: int = 32) -> None:
        if bits not in KV_BITS:
            raise UsageError("unknown kv_bits", expected="32, 16, 8 or 4", found=bits)
        self.bits = bits
        self.tokens: list[int] = []
        self.scratch = Scratch()
        room = config.n_kv_heads, max(1, capacity), config.head_dim
        try:
            self.layers = [KeyValues.empty(room, bits) for _ in range(config.n_layers)]
        except (MemoryError, ValueError):  # ValueError: larger than the address space
            raise _no_memory(capacity) from None

    @property
    def capacity(self) -> int:
        """Tokens there is room for."""
        return min(layer.capacity for layer in self.layers)

    @property
    def length(self) -> int:
        """Number of tokens in it."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of address space it takes."""
        return sum(layer.nbytes for layer in self.layers)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, at least doubling the capacity where it does not suffice.

        Raises
        ------
        ResourceError
            Not enough memory.
        """
        if length <= self.capacity:
            return
        capacity = max(length, 2 * self.capacity)
        try:
            for number, layer in enumerate(self.layers):
                self.layers[number] = layer.grown(capacity, self.length)
        except (MemoryError, ValueError):
            raise _no_memory(capacity) from None

    def extend(self, tokens: Iterable[int]) -> None:
        """Count tokens as seen, once every layer has stored them."""
        self.tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from number `length` on; ValueError if there are not so many."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be 0 to {self.length}, not {length}")
        del self.tokens[length:]


def _no_memory(capacity: int) -> ResourceError:
    return ResourceError(f"not enough memory for a cache of {capacity} tokens", hint="ask for fewer tokens")
