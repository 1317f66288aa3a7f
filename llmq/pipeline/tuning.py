"""Training in a calibrated run: a block of the runtime and saved hidden states, as `llmq.learn` takes them.

Torch is imported only when a block is tuned.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmq.errors import UsageError
from llmq.methods import METHODS
from llmq.pipeline.block import PROJECTIONS, parameters_of
from llmq_kernels.jit import threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.pipeline.hidden import SavedStates
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor
    from llmq.system.progress import Progress

__all__ = ["BlockTuner", "check_torch"]

_NAMES = {projection: f"{name}.weight" for name, projection in PROJECTIONS.items()}


def check_torch(method: str) -> None:
    """Raise UsageError if a method trains and torch is not installed."""
    if METHODS[method].needs == "block" and importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"--method {method} trains with torch, which is not installed",
            hint='pip install "numba-llmq[hf]", or --method gptq, which needs no torch',
        )


@dataclass(frozen=True, eq=False)
class BlockTuner:
    """Tunes the blocks of a model one after the other.

    Parameters
    ----------
    config : mapping
        `config.json`.
    states : SavedStates
        Windows as they come out of the quantized blocks before, and behind them, as many, what the original blocks
        make of the text, this one included.
    held : int
        Windows to judge by, the last ones; a single window is learned from and judged by.
    """

    config: Mapping[str, Any]
    states: SavedStates
    held: int

    def __call__(
        self,
        layer: int,
        block: Block,
        starts: Mapping[str, QuantizedTensor],
        *,
        progress: Progress,
        nbytes: int,
    ) -> dict[str, QuantizedTensor]:
        """Tune a block's linears, given by projection; `nbytes` is what its progress counts as."""
        import torch

        from llmq.learn.block import TorchBlock
        from llmq.learn.tune import Settings, Windows, readings, tune_block

        count, context = self.states.windows // 2, self.states.context
        read = self.states.read
        weights = {name: torch.from_numpy(array) for name, array in parameters_of(block).items()}
        windows = Windows(
            lambda number: (read(number, number + 1)[0], read(count + number, count + number + 1)[0]),
            train=range(count - self.held or count),
            held=range(count - self.held, count),
        )
        told = 0

        def tell(share: float) -> None:
            nonlocal told
            progress.advance(int(share * nbytes) - told)
            told = int(share * nbytes)

        tuned = tune_block(
            TorchBlock(self.config, layer, context, weights=weights),
            {_NAMES[projection]: start for projection, start in starts.items()},
            windows,
            settings=Settings(epochs=readings(count * context), seed=layer),
            threads=threads(),
            progress=tell,
        )
        return {projection: tuned[_NAMES[projection]] for projection in starts}
