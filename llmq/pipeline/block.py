"""One decoder block of a calibrated run: watched, quantized, and judged by what it puts out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.observers.inputs import InputMoments
from llmq.runtime.cache import KVCache
from llmq.runtime.linear import PackedLinear
from llmq.runtime.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures import DecoderConfig
    from llmq.observers.inputs import InputStatistics
    from llmq.runtime.linear import Linear
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor

__all__ = ["PROJECTIONS", "BlockRunner", "linear_of", "packed_block", "watch"]

PROJECTIONS: Final = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
"""Linears of a block by what follows `model.layers.N.` in their names."""

_ATTENTION: Final = ("q", "k", "v", "o")
_WATCHED: Final = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
"""Linears whose inputs are watched, and those that share them."""


def linear_of(block: Block, name: str) -> Linear:
    """The linear that stands for a projection: `q`, `k`, `v`, `o`, `gate`, `up` or `down`."""
    found: Linear = getattr(block.attention if name in _ATTENTION else block.mlp, name)
    return found


def _with(block: Block, linears: Mapping[str, Linear]) -> Block:
    """`block` with other linears."""
    attention: dict[str, Any] = {name: linear for name, linear in linears.items() if name in _ATTENTION}
    mlp: dict[str, Any] = {name: linear for name, linear in linears.items() if name not in _ATTENTION}
    return replace(block, attention=replace(block.attention, **attention), mlp=replace(block.mlp, **mlp))


def packed_block(block: Block, weights: Mapping[str, QuantizedTensor]) -> Block:
    """`block` with packed linears, whose activations stay exact."""
    packed = {name: PackedLinear(q, linear_of(block, name).bias, "float32") for name, q in weights.items()}
    return _with(block, packed)


@dataclass(frozen=True, eq=False)
class _Watched:
    """A linear whose inputs are counted."""

    linear: Linear
    moments: InputMoments

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.linear.shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        return self.linear.kind

    @property
    def bias(self) -> np.ndarray | None:
        """As of the linear."""
        return self.linear.bias

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Count the inputs and multiply."""
        self.moments.add(x)
        return self.linear(x, out=out)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number."""
        return self.linear.rows(ids)


class BlockRunner:
    """Runs windows of hidden states through a block, each from its beginning.

    Parameters
    ----------
    config : DecoderConfig
    layer : int
        Where the block stands.
    context : int
        Tokens of a window.
    """

    def __init__(self, config: DecoderConfig, layer: int, context: int) -> None:
        self._config = config
        self._layer = layer
        self._cache = KVCache(replace(config, n_layers=1), context)

    def run(self, block: Block, x: np.ndarray) -> np.ndarray:
        """Run one window, float32 (context, hidden_size), in place."""
        return Stack.single(self._config, block, self._layer).run(x, self._cache, x.shape[0])

    def error(self, block: Block, inputs: np.ndarray, wanted: np.ndarray) -> float:
        """Squared error of a block's outputs over what the inputs were changed by.

        Parameters
        ----------
        block : Block
        inputs, wanted : float32 (windows, context, hidden_size)
            What goes in; what the original block makes of it.
        """
        off = change = 0.0
        for x, y in zip(inputs, wanted, strict=True):
            off += float(np.square(self.run(block, x.copy()) - y, dtype=np.float64).sum())
            change += float(np.square(y - x, dtype=np.float64).sum())
        return off / change if change else off


def watch(
    runner: BlockRunner, block: Block, inputs: np.ndarray, *, held: int, whole: bool
) -> tuple[dict[str, InputStatistics], np.ndarray]:
    """Count the inputs of a block's linears over all windows but the last `held`.

    Parameters
    ----------
    runner : BlockRunner
    block : Block
    inputs : float32 (windows, context, hidden_size)
    held : int
        Windows kept apart to judge by; if those are all, they are counted too.
    whole : bool
        Whether all second moments are needed.

    Returns
    -------
    statistics : dict of InputStatistics
        By projection; those that share inputs share them.
    outputs : float32 (held, context, hidden_size)
        What the block makes of the windows kept apart.
    """
    moments = {name: InputMoments(linear_of(block, name).shape[1], whole=whole) for name in _WATCHED}
    watched = _with(block, {name: _Watched(linear_of(block, name), moments[name]) for name in _WATCHED})
    first_held = len(inputs) - held
    outputs = np.empty((held, *inputs.shape[1:]), np.float32)
    for number, x in enumerate(inputs):
        counted = number < first_held or first_held == 0
        y = runner.run(watched if counted else block, x.copy())
        if number >= first_held:
            outputs[number - first_held] = y
    statistics = {name: found.statistics() for name, found in moments.items()}
    return {shared: statistics[name] for name, sharing in _WATCHED.items() for shared in sharing}, outputs
