"""How much each weight matters to what a model says, from one pass of a text through the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from llmq.architectures import decoder_config
from llmq.checkpoint.loaded import LoadedCheckpoint
from llmq.pipeline.block import PROJECTIONS, BlockRunner, branch_shares
from llmq.pipeline.hidden import embed
from llmq.plan.priors import PATTERN
from llmq.runtime.assemble import assemble_block
from llmq.runtime.weights import Weights
from llmq_kernels.jit import threads

if TYPE_CHECKING:
    import numpy as np

    from llmq.checkpoint.source import Source
    from llmq.pipeline.calibration import Calibration
    from llmq.system.progress import Progress

__all__ = ["Share", "measure_shares"]


@dataclass(frozen=True, eq=False)
class Share:
    """What a relative error of a weight's outputs costs.

    Parameters
    ----------
    energy : float32 (in_features,)
        Mean square of its inputs.
    share : float
        Energy of what its branch adds to the residual stream, over that of the stream with it; half of that for
        queries and keys. Times the relative error of the outputs it orders weights by what rounding them does to the
        predictions: on the sample the logarithms of both correlate with .81.
    """

    energy: np.ndarray
    share: float


def measure_shares(source: Source, calibration: Calibration, progress: Progress) -> dict[str, Share]:
    """Take a text through the original model, one block in memory at a time.

    Parameters
    ----------
    source : Source
    calibration : Calibration
        The text; a few windows will do.
    progress : Progress
        Told of blocks.

    Returns
    -------
    dict of Share
        By tensor name, for the linears of all blocks.

    Raises
    ------
    UnsupportedError
        An architecture that llmq cannot run.
    InputError
        The source cannot be read.
    """
    config, loaded = decoder_config(source.config), LoadedCheckpoint(source)
    windows, context = calibration.tokens.shape
    states = embed(loaded, calibration.tokens.reshape(-1)).reshape(windows, context, -1)
    found = {}
    progress.start("measuring shares", config.n_layers, "blocks")
    for layer in range(config.n_layers):
        block = assemble_block(config, Weights(loaded, None, "float32"), layer)
        with threadpool_limits(threads(), "blas"):
            statistics, branches = branch_shares(BlockRunner(config, layer, context), block, states)
        for module, name in PROJECTIONS.items():
            share = branches.attention if module.startswith("self_attn") else branches.mlp
            share *= PATTERN if name in ("q", "k") else 1.0
            found[f"model.layers.{layer}.{module}.weight"] = Share(statistics[name].energy, share)
        del block  # before the next is read
        progress.advance(1)
    progress.finish()
    return found
