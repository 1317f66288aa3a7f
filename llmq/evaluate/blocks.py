"""All windows of a text through one decoder block, then through the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from llmq.runtime.cache import KVCache
from llmq.runtime.stack import Stack
from llmq.runtime.states import HiddenStates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmq.architectures import DecoderConfig
    from llmq.runtime.linear import Linear
    from llmq.runtime.stack import Block

__all__ = ["LanguageModel", "run_blocks"]

_PIECE: Final = 256
"""Tokens that go through a block at once: enough to make use of every weight that is read."""


class Table(Protocol):
    """Rows by number."""

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows, float32 (n, hidden_size), of ids, int64 (n,)."""
        ...


class Layers(Protocol):
    """The layers of a model; `Decoder` is one."""

    @property
    def embedding(self) -> Table:
        """What tokens begin as."""
        ...

    @property
    def head(self) -> Linear:
        """What makes logits."""
        ...

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What they go through."""
        ...

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Norm and head: float32 (n, hidden_size) to float32 (n, vocab_size)."""
        ...


class LanguageModel(Protocol):
    """What is needed of a model; `llmq.load` gives one."""

    compute: Any
    kv_bits: int

    @property
    def decoder(self) -> Layers:
        """Its layers."""
        ...

    @property
    def config(self) -> DecoderConfig:
        """Sizes."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens the model was made for; None where positions depend on the length of the text."""
        ...

    def release(self) -> None:
        """Give back the memory of weights that were used."""
        ...


def run_blocks(
    model: LanguageModel, windows: Sequence[np.ndarray], budget: int, advance: Callable[[int], None]
) -> HiddenStates:
    """Run windows of tokens, each from its beginning, through all blocks of a model.

    Parameters
    ----------
    model : Model
        Its weights are given back after each block.
    windows : sequence of int64 (n,)
        Valid ids.
    budget : int
        Bytes that hidden states may take in memory.
    advance : callable
        Told how many tokens went through a block.

    Returns
    -------
    HiddenStates
        Before the last norm, one row for each token; to be closed.

    Raises
    ------
    ResourceError
        No room for hidden states or keys and values.
    """
    config, layers = model.config, model.decoder
    starts = np.concatenate([[0], np.cumsum([window.size for window in windows])]).tolist()
    states = HiddenStates(starts[-1], config.hidden_size, budget)
    try:
        for start, window in zip(starts, windows, strict=False):
            states.write(start, layers.embedding.rows(window))
        model.release()
        cache = None
        for number, block in enumerate(layers.blocks):
            stack = Stack.single(config, block, number)
            cache = cache or KVCache(stack.config, max(window.size for window in windows), model.kv_bits)
            for start, window in zip(starts, windows, strict=False):
                states.write(start, _run(stack, states.read(start, start + window.size), window, cache))
                advance(window.size)
            model.release()
    except BaseException:
        states.close()
        raise
    return states


def _run(stack: Stack, x: np.ndarray, window: np.ndarray, cache: KVCache) -> np.ndarray:
    """Run the states of a window, in place."""
    cache.truncate(0)
    for first in range(0, window.size, _PIECE):
        ids = window[first : first + _PIECE]
        stack.run(x[first : first + ids.size], cache, window.size)
        cache.extend(ids.tolist())
    return x
