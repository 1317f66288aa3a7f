"""One decoder for every Llama-like architecture: NumPy and kernels over weights that stay on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmq.runtime.stack import Stack
from llmq_kernels.norm import rms_norm

if TYPE_CHECKING:
    import numpy as np

    from llmq.architectures import DecoderConfig
    from llmq.runtime.cache import KVCache
    from llmq.runtime.linear import Linear
    from llmq.runtime.stack import Block

__all__ = ["Decoder"]


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
    _stack: Stack = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stack", Stack(self.config, self.blocks))

    def abridged(self) -> Decoder:
        """Return a decoder with one block of each kind, resident if there is one, which runs the same kernels."""
        kinds = {block.kind: block for block in reversed(self.blocks)}
        kinds |= {block.kind: block for block in self.blocks if block.resident}
        return replace(self, blocks=tuple(kinds.values()))

    def hidden(self, tokens: np.ndarray, cache: KVCache, length: int, *, chunk: int | None = None) -> np.ndarray:
        """Run new tokens through all blocks and add them to the cache.

        Parameters
        ----------
        tokens : int64 (n,)
            Valid ids.
        cache : KVCache
            What came before.
        length : int
            Tokens of the whole text that these are a part of, for positions that depend on it.
        chunk : int, optional
            Tokens that go through a block at a time; see `Stack.run`.

        Returns
        -------
        float32 (n, hidden_size)
            Before the last norm.

        Raises
        ------
        UnsupportedError
            `NUMBA_DISABLE_JIT` is set.
        ResourceError
            Not enough memory for the cache.
        """
        x = self._stack.run(self.embedding.rows(tokens), cache, length, chunk=chunk)
        cache.extend(tokens.tolist())
        return x

    def logits(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Norm and head: float32 (n, hidden_size) to float32 (n, vocab_size)."""
        return self.head(rms_norm(x, self.norm, self.config.rms_norm_eps), out=out)
