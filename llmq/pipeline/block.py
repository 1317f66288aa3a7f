"""One decoder block of a calibrated run: watched, quantized, and judged by what it puts out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.observers.inputs import InputMoments
from llmq.pipeline.products import PanelLinear
from llmq.plan.calibrated import TOKENS
from llmq.runtime.cache import KVCache
from llmq.runtime.linear import PackedLinear
from llmq.runtime.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmq.architectures import DecoderConfig
    from llmq.observers.inputs import InputStatistics
    from llmq.runtime.linear import Linear
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor

__all__ = ["PROJECTIONS", "BlockRunner", "BranchShares", "branch_shares", "linear_of", "packed_block", "watch"]

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
    """`block` with packed linears, whose activations stay exact; the others become fit for many tokens."""
    packed = {name: PackedLinear(q, linear_of(block, name).bias, "float32") for name, q in weights.items()}
    return _for_many(_with(block, packed))


def _for_many(block: Block) -> Block:
    """`block` with linears for many tokens at once."""
    return _with(block, {name: PanelLinear(linear_of(block, name)) for name in PROJECTIONS.values()})


@dataclass(frozen=True, eq=False)
class _Watched:
    """A linear whose inputs are counted."""

    linear: Linear
    moments: InputMoments
    outputs: list[np.ndarray] = field(default_factory=list)
    """Copies of what it gave, for whoever takes them out."""

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
        y = self.linear(x, out=out)
        self.outputs[:] = [y.copy()]  # the array will be used again
        return y

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
    block = _for_many(block)
    linears = _watched(block, whole=whole)
    watched = _with(block, linears)
    outputs = inputs[len(inputs) - held :].copy()
    for x in runner.parts(inputs if held == len(inputs) else inputs[: len(inputs) - held]):
        runner.run(watched, x.copy())
    for x in runner.parts(outputs):
        runner.run(block, x)
    return _statistics(linears), outputs


def _watched(block: Block, *, whole: bool) -> dict[str, _Watched]:
    """Watch one of all linears that share their inputs."""
    linears = {name: linear_of(block, name) for name in _WATCHED}
    return {name: _Watched(linear, InputMoments(linear.shape[1], whole=whole)) for name, linear in linears.items()}


def _statistics(linears: Mapping[str, _Watched]) -> dict[str, InputStatistics]:
    """Statistics by projection; those that share inputs share them."""
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
    linears = _watched(_for_many(block), whole=False)
    watched = _with(_for_many(block), linears)
    sums = np.zeros(4)
    for x in runner.parts(states):
        before = x.copy()
        runner.run(watched, x)
        attention, mlp = (linears[name].outputs.pop().reshape(x.shape) for name in ("o", "down"))
        sums += [float(np.square(y, dtype=np.float64).sum()) for y in (attention, before + attention, mlp, x)]
    shares = BranchShares(sums[0] / (sums[1] or 1.0), sums[2] / (sums[3] or 1.0))
    return _statistics(linears), shares
