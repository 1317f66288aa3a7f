"""One decoder for every Llama-like architecture: NumPy and kernels over weights that stay on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmq.runtime.rotary import rotation
from llmq_kernels.attention import attention
from llmq_kernels.norm import rms_norm
from llmq_kernels.rope import rope
from llmq_kernels.swiglu import swiglu

if TYPE_CHECKING:
    from llmq.architectures import DecoderConfig
    from llmq.runtime.cache import KVCache
    from llmq.runtime.linear import Linear

__all__ = ["Attention", "Block", "Decoder", "Mlp"]


@dataclass(frozen=True, eq=False)
class Attention:
    """Weights of a block's attention.

    Parameters
    ----------
    q, k, v, o : Linear
        Projections.
    q_norm, k_norm : float32 (head_dim,) or None
    window : int or None
        How many positions a token sees, itself included.
    """

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    window: int | None


@dataclass(frozen=True, eq=False)
class Mlp:
    """Weights of a block's MLP: `down(silu(gate(x)) * up(x))`."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class Block:
    """A decoder block: `x += attention(norm(x))`, then `x += mlp(norm(x))`."""

    attention_norm: np.ndarray
    attention: Attention
    mlp_norm: np.ndarray
    mlp: Mlp


@dataclass(frozen=True, eq=False)
class Decoder:
    """Embedding, blocks, norm and head.

    Parameters
    ----------
    config : DecoderConfig
    embedding, head : Linear
        The same object where they are tied.
    blocks : tuple of Block
    norm : float32 (hidden_size,)
    """

    config: DecoderConfig
    embedding: Linear
    blocks: tuple[Block, ...]
    norm: np.ndarray
    head: Linear

    def hidden(self, tokens: np.ndarray, cache: KVCache, length: int) -> np.ndarray:
        """Run new tokens through all blocks and add them to the cache.

        Parameters
        ----------
        tokens : int64 (n,)
            Valid ids.
        cache : KVCache
            What came before.
        length : int
            Tokens of the whole text that these are a part of, for positions that depend on it.

        Returns
        -------
        float32 (n, hidden_size)
            Before the last norm.
        """
        cache.reserve(cache.length + tokens.size)
        positions = np.arange(cache.length, cache.length + tokens.size)
        turn = rotation(self.config.rope, self.config.head_dim, positions, length)
        x = self.embedding.rows(tokens)
        for layer, block in enumerate(self.blocks):
            normed = rms_norm(x, block.attention_norm, self.config.rms_norm_eps)
            x += self._attend(normed, turn, layer, cache)
            normed = rms_norm(x, block.mlp_norm, self.config.rms_norm_eps)
            x += block.mlp.down(swiglu(block.mlp.gate(normed), block.mlp.up(normed)))
        cache.extend(tokens.tolist())
        return x

    def logits(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Norm and head: float32 (n, hidden_size) to float32 (n, vocab_size)."""
        return self.head(rms_norm(x, self.norm, self.config.rms_norm_eps), out=out)

    def _attend(self, x: np.ndarray, turn: tuple[np.ndarray, np.ndarray], layer: int, cache: KVCache) -> np.ndarray:
        weights = self.blocks[layer].attention
        queries = self._heads(weights.q(x), weights.q_norm)
        keys = self._heads(weights.k(x), weights.k_norm)
        values = self._heads(weights.v(x), None)
        rope(queries, *turn)
        rope(keys, *turn)
        all_keys, all_values = cache.store(layer, keys, values)
        mixed = attention(queries, all_keys, all_values, start=cache.length, window=weights.window)
        return weights.o(mixed.reshape(x.shape[0], -1))

    def _heads(self, x: np.ndarray, norm: np.ndarray | None) -> np.ndarray:
        """Split float32 (tokens, heads * head_dim) into (tokens, heads, head_dim), each head normed where asked."""
        tokens, head_dim = x.shape[0], self.config.head_dim
        if norm is not None:
            x = rms_norm(x.reshape(-1, head_dim), norm, self.config.rms_norm_eps)
        return x.reshape(tokens, -1, head_dim)
