"""Decoder blocks, and hidden states that run through them: a whole model's, or one block at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.errors import UnsupportedError
from llmq.runtime.experts import SparseMlp, choose_experts, sigmoid
from llmq.runtime.linear import Fan
from llmq.runtime.rotary import RotaryTable
from llmq_kernels.attention import attention
from llmq_kernels.heads import HeadNorms, store_heads
from llmq_kernels.jit import jit_enabled
from llmq_kernels.norm import add_norm, rms_norm
from llmq_kernels.swiglu import swiglu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures import DecoderConfig
    from llmq.runtime.cache import KVCache
    from llmq.runtime.linear import Linear

__all__ = ["Attention", "Block", "Mlp", "Stack"]

_ATTENTION: Final = ("q", "k", "v", "o")
_MLP: Final = ("gate", "up", "down")


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

    @cached_property
    def qkv(self) -> Fan:
        """The projections of the block's input."""
        return Fan((self.q, self.k, self.v))


@dataclass(frozen=True, eq=False)
class Mlp:
    """Weights of a block's MLP: `down(silu(gate(x)) * up(x))`."""

    gate: Linear
    up: Linear
    down: Linear

    @property
    def linears(self) -> dict[str, Linear]:
        """Its linears by name."""
        return {name: getattr(self, name) for name in _MLP}

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        return tuple(linear.kind for linear in self.linears.values())

    @cached_property
    def gate_up(self) -> Fan:
        """The projections of the block's input."""
        return Fan((self.gate, self.up))


@dataclass(frozen=True, eq=False)
class Block:
    """A decoder block: `x += attention(norm(x))`, then `x += mlp(norm(x))`.

    Parameters
    ----------
    attention_norm, mlp_norm : float32 (hidden_size,)
    attention : Attention
    mlp : Mlp or SparseMlp
    ready : context manager
        Within it the weights are there: some blocks are read only when their turn comes.
    """

    attention_norm: np.ndarray
    attention: Attention
    mlp_norm: np.ndarray
    mlp: Mlp | SparseMlp
    ready: AbstractContextManager[object] = field(default_factory=nullcontext)

    @property
    def resident(self) -> bool:
        """Whether the weights are always there."""
        return isinstance(self.ready, nullcontext)

    @property
    def linears(self) -> dict[str, Linear]:
        """Its linears by name: `q`, `k`, `v`, `o`, and `gate`, `up` and `down` or those of its experts."""
        return {name: getattr(self.attention, name) for name in _ATTENTION} | self.mlp.linears

    def with_linears(self, linears: Mapping[str, Any]) -> Block:
        """The same block with other linears in place of those of the same names; not for experts."""
        assert isinstance(self.mlp, Mlp)
        own, mlp = ({name: linears[name] for name in names if name in linears} for names in (_ATTENTION, _MLP))
        return replace(self, attention=replace(self.attention, **own), mlp=replace(self.mlp, **mlp))

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        own = self.attention
        kinds = (getattr(own, name).kind for name in _ATTENTION)
        return own.window is None, own.q_norm is None, *kinds, *self.mlp.kind


@dataclass(frozen=True, eq=False)
class Stack:
    """Blocks that hidden states run through.

    Parameters
    ----------
    config : DecoderConfig
        Its `n_layers` is the number of caches a `KVCache` made of it has: at least that of the blocks.
    blocks : tuple of Block
    """

    config: DecoderConfig
    blocks: tuple[Block, ...]
    _rotary: RotaryTable = field(init=False, repr=False)
    _head_norms: tuple[HeadNorms, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        eps = self.config.rms_norm_eps
        norms = tuple(HeadNorms(b.attention.q_norm, b.attention.k_norm, eps) for b in self.blocks)
        object.__setattr__(self, "_head_norms", norms)
        object.__setattr__(self, "_rotary", RotaryTable(self.config.rope, self.config.head_dim))

    @classmethod
    def single(cls, config: DecoderConfig, block: Block, layer: int) -> Stack:
        """Make a stack of the one block that stands at `layer` in the model of `config`."""
        return cls(replace(config, n_layers=1, sliding_window=(config.sliding_window[layer],)), (block,))

    def run(
        self, x: np.ndarray, cache: KVCache, length: int, *, windows: int = 1, chunk: int | None = None
    ) -> np.ndarray:
        """Run hidden states through all blocks; their keys and values join the cache.

        Parameters
        ----------
        x : float32 (n, hidden_size)
            C-contiguous; overwritten.
        cache : KVCache
            What came before. Counting the tokens as seen (`KVCache.extend`) is left to the caller.
        length : int
            Tokens of the whole text that these are a part of, for positions that depend on it.
        windows : int
            Texts of equal length that stand one behind the other in `x`, and do not see each other. With several, the
            stack has one block and the cache is empty; it holds nothing of use afterwards.
        chunk : int, optional
            Tokens that go through a block at a time, of a text that goes through block by block: each block's weights
            are needed once, and the result is that of so many tokens at a time. All by default.

        Returns
        -------
        float32 (n, hidden_size)
            `x`.

        Raises
        ------
        UnsupportedError
            `NUMBA_DISABLE_JIT` is set.
        ResourceError
            Not enough memory for the cache.
        """
        if not jit_enabled():
            raise UnsupportedError("models run in compiled kernels only", hint="unset NUMBA_DISABLE_JIT")
        count, total = x.shape[0] // windows, x.shape[0]
        assert windows == 1 or (len(self.blocks) == 1 and cache.length == 0 and chunk is None)
        cache.reserve(cache.length + count)
        turn = self._rotary.rows(cache.length, count, length)
        step = max(1, chunk or total)
        parts = [slice(start, min(start + step, total)) for start in range(0, total, step)]
        deltas: list[np.ndarray | None] = [None] * len(parts)
        room = cache.scratch.room("deltas", x.shape) if len(parts) > 1 else None
        for layer, block in enumerate(self.blocks):
            with block.ready:
                for number, part in enumerate(parts):
                    turned = turn if len(parts) == 1 else (turn[0][part], turn[1][part])
                    delta = self._run_block(x[part], deltas[number], layer, turned, cache, part.start)
                    if room is None:
                        deltas[number] = delta
                    else:  # the next part makes its own in the same place
                        room[part] = delta
                        deltas[number] = room[part]
        for part, last in zip(parts, deltas, strict=True):
            if last is not None:
                x[part] += last
        return x

    def _run_block(
        self,
        x: np.ndarray,
        delta: np.ndarray | None,
        layer: int,
        turn: tuple[np.ndarray, np.ndarray],
        cache: KVCache,
        behind: int,
    ) -> np.ndarray:
        """Run tokens, `behind` places behind those of the cache, through a block.

        What the block before adds to `x`, `delta`, is added in one go with the norm; what this one adds is returned.
        """
        block, eps = self.blocks[layer], self.config.rms_norm_eps
        room = cache.scratch.room("normed", x.shape)
        if delta is None:
            normed = rms_norm(x, block.attention_norm, eps, out=room)
        else:
            normed = add_norm(x, delta, block.attention_norm, eps, out=room)
        delta = self._attend(normed, turn, layer, cache, cache.length + behind)
        normed = add_norm(x, delta, block.mlp_norm, eps, out=room)
        return self._mlp(normed, block.mlp, cache)

    def _attend(
        self, x: np.ndarray, turn: tuple[np.ndarray, np.ndarray], layer: int, cache: KVCache, position: int
    ) -> np.ndarray:
        weights, kept, room = self.blocks[layer].attention, cache.layers[layer], cache.scratch.room
        count, head_dim = x.shape[0], self.config.head_dim
        named = zip(("queries", "keys", "values"), (weights.q, weights.k, weights.v), strict=True)
        heads = [room(name, (count, linear.shape[0])) for name, linear in named]
        weights.qkv(x, heads)
        mixed = room("mixed", heads[0].shape)
        tokens = turn[0].shape[0]
        for start in range(0, count, tokens):
            parts = (array[start : start + tokens].reshape(tokens, -1, head_dim) for array in (*heads, mixed))
            queries, keys, values, out = parts
            store_heads((queries, keys, values), turn, kept, position=position, norms=self._head_norms[layer])
            attention(queries, kept, start=position, window=weights.window, out=out, scratch=cache.scratch)
        return weights.o(mixed, out=room("delta", x.shape))

    def _mlp(self, x: np.ndarray, weights: Mlp | SparseMlp, cache: KVCache) -> np.ndarray:
        if isinstance(weights, SparseMlp):
            return self._route(x, weights, cache)
        return self._gate(x, weights, cache)

    def _route(self, x: np.ndarray, weights: SparseMlp, cache: KVCache) -> np.ndarray:
        """Take every token through its experts, one expert after the other: only those in use are read."""
        total = cache.scratch.room("routed", x.shape)
        if weights.shared is None or weights.shared_gate is None:
            total[:] = 0.0
        else:
            np.multiply(self._gate(x, weights.shared, cache), sigmoid(weights.shared_gate(x)), out=total)
        chosen, shares = choose_experts(weights.router(x), weights.used, normalized=weights.normalized)
        numbers: list[int] = np.unique(chosen).tolist()
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            if weights.used_next is not None:
                weights.used_next(number, following)
            tokens, places = np.nonzero(chosen == number)
            made = self._gate(x[tokens], weights.experts[number], cache)
            total[tokens] += shares[tokens, places, None] * made
        return total

    def _gate(self, x: np.ndarray, weights: Mlp, cache: KVCache) -> np.ndarray:
        room, shape = cache.scratch.room, (x.shape[0], weights.gate.shape[0])
        gate, up = room("gate", shape), room("up", shape)
        weights.gate_up(x, (gate, up))
        return weights.down(swiglu(gate, up, out=gate), out=room("delta", x.shape))
