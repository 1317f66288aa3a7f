"""One decoder block of a calibrated run: watched, quantized, and judged by what it puts out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.observers.inputs import InputMoments
from llmq.pipeline.products import LinearAround, PanelLinear
from llmq.plan.calibrated import TOKENS
from llmq.runtime.cache import KVCache
from llmq.runtime.linear import PackedLinear
from llmq.runtime.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llmq.architectures import DecoderConfig
    from llmq.observers.inputs import InputStatistics
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor

__all__ = ["PROJECTIONS", "BlockRunner", "BranchShares", "branch_shares", "for_many", "parameters_of", "watch"]

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

_WATCHED: Final = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
"""Linears whose inputs are watched, and those that share them."""


def for_many(block: Block, weights: Mapping[str, QuantizedTensor] | None = None) -> Block:
    """`block` with linears for many tokens at once, some of them packed; their activations stay exact."""
    packed = {name: PackedLinear(q, block.linears[name].bias, "float32") for name, q in (weights or {}).items()}
    return block.with_linears({name: PanelLinear(linear) for name, linear in (block.linears | packed).items()})


def parameters_of(block: Block) -> dict[str, np.ndarray]:
    """All parameters of a dense block by what follows `model.layers.N.` in their names, float32; weights are copies."""
    own = block.attention
    found = {"input_layernorm.weight": block.attention_norm, "post_attention_layernorm.weight": block.mlp_norm}
    norms = {"self_attn.q_norm.weight": own.q_norm, "self_attn.k_norm.weight": own.k_norm}
    found |= {name: norm for name, norm in norms.items() if norm is not None}
    for name, projection in PROJECTIONS.items():
        linear = block.linears[projection]
        found[f"{name}.weight"] = linear.rows(np.arange(linear.shape[0]))
        if linear.bias is not None:
            found[f"{name}.bias"] = linear.bias
    return found


@dataclass(frozen=True, eq=False)
class _Watched(LinearAround):
    """A linear whose inputs are counted, and whose outputs may be kept."""

    moments: InputMoments
    outputs: list[np.ndarray] | None = None
    """Where copies of what it gives go."""

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Count the inputs and multiply."""
        self.moments.add(x)
        y = self.linear(x, out=out)
        if self.outputs is not None:
            self.outputs.append(y.copy())  # the array will be used again
        return y


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
        self.windows = max(1, TOKENS // context)
        """How many to run at a time."""

    def run(self, block: Block, x: np.ndarray) -> np.ndarray:
        """Run windows, float32 (windows, context, hidden_size), in place."""
        windows, context, width = x.shape
        stack = Stack.single(self._config, block, self._layer)
        return stack.run(x.reshape(-1, width), self._cache, context, windows=windows).reshape(x.shape)

    def parts(self, states: np.ndarray) -> Iterator[np.ndarray]:
        """Cut windows into parts to run at a time."""
        for start in range(0, len(states), self.windows):
            yield states[start : start + self.windows]

    def outputs(self, block: Block, inputs: np.ndarray) -> np.ndarray:
        """What a block makes of windows, float32 (windows, context, hidden_size), which stay as they are."""
        return np.concatenate([self.run(block, x.copy()) for x in self.parts(inputs)])

    def error(self, block: Block, inputs: np.ndarray, wanted: np.ndarray) -> float:
        """Squared error of a block's outputs over what the inputs were changed by.

        Parameters
        ----------
        block : Block
        inputs, wanted : float32 (windows, context, hidden_size)
            What goes in; what the original block makes of it.
        """
        off = change = 0.0
        for x, y in zip(self.parts(inputs), self.parts(wanted), strict=True):
            off += float(np.square(self.run(block, x.copy()) - y, dtype=np.float64).sum())
            change += float(np.square(y - x, dtype=np.float64).sum())
        return off / change if change else off


def watch(runner: BlockRunner, block: Block, parts: Iterable[np.ndarray], *, whole: bool) -> dict[str, InputStatistics]:
    """Count the inputs of a block's linears.

    Parameters
    ----------
    runner : BlockRunner
    block : Block
        For many tokens.
    parts : iterable of float32 (windows, context, hidden_size)
        What goes in, a part at a time; overwritten.
    whole : bool
        Whether all second moments are needed.

    Returns
    -------
    dict of InputStatistics
        By linear; those that share inputs share them.
    """
    linears = {name: _Watched(block.linears[name], _moments(block, name, whole=whole)) for name in _WATCHED}
    watched = block.with_linears(linears)
    for x in parts:
        runner.run(watched, x)
    return _statistics(linears)


def _moments(block: Block, name: str, *, whole: bool = False) -> InputMoments:
    return InputMoments(block.linears[name].shape[1], whole=whole)


def _statistics(linears: Mapping[str, _Watched]) -> dict[str, InputStatistics]:
    """Statistics by linear; those that share inputs share them."""
    found = {name: linear.moments.statistics() for name, linear in linears.items()}
    return {shared: found[name] for name, sharing in _WATCHED.items() for shared in sharing}


@dataclass(frozen=True)
class BranchShares:
    """How much of the residual stream is what a branch has just added to it, as energies.

    Parameters
    ----------
    attention, mlp : float
        Sum of squares of what the branch adds, over that of the stream with it.
    """

    attention: float
    mlp: float


def branch_shares(
    runner: BlockRunner, block: Block, states: np.ndarray
) -> tuple[dict[str, InputStatistics], BranchShares]:
    """Take windows of hidden states through a block, and tell how large its branches are.

    Parameters
    ----------
    runner : BlockRunner
    block : Block
    states : float32 (windows, context, hidden_size)
        What goes in; overwritten by what comes out.

    Returns
    -------
    statistics : dict of InputStatistics
        Energies by projection.
    shares : BranchShares
    """
    block = for_many(block)
    kept: dict[str, list[np.ndarray]] = {"o": [], "down": []}
    linears = {name: _Watched(block.linears[name], _moments(block, name), kept.get(name)) for name in _WATCHED}
    watched = block.with_linears(linears)
    sums = np.zeros(4)
    for x in runner.parts(states):
        before = x.copy()
        runner.run(watched, x)
        attention, mlp = (outputs.pop().reshape(x.shape) for outputs in kept.values())
        sums += [float(np.square(y, dtype=np.float64).sum()) for y in (attention, before + attention, mlp, x)]
    shares = BranchShares(sums[0] / (sums[1] or 1.0), sums[2] / (sums[3] or 1.0))
    return _statistics(linears), shares
