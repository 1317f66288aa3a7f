"""Carry out a plan whose method needs data: one decoder block in memory at a time, each on what those before give."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from threadpoolctl import threadpool_limits
from xxhash import xxh3_128

from llmq.architectures import decoder_config
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.journal import Scratch
from llmq.checkpoint.loaded import LoadedCheckpoint
from llmq.errors import InputError
from llmq.methods import DATA_FREE, METHODS
from llmq.pipeline.block import PROJECTIONS, BlockRunner, for_many, watch
from llmq.pipeline.hidden import SavedStates, embed
from llmq.pipeline.run import Sink, bytes_to_read, missing_outputs, refuse_nonfinite, run_plan
from llmq.pipeline.tuning import BlockTuner
from llmq.runtime.assemble import assemble_block
from llmq.runtime.linear import DenseLinear
from llmq.runtime.weights import Weights
from llmq_kernels.jit import threads
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.checkpoint.source import Source
    from llmq.checkpoint.writer import CheckpointWriter
    from llmq.observers.inputs import InputStatistics
    from llmq.pipeline.calibration import Calibration
    from llmq.pipeline.edges import EdgeCounts
    from llmq.plan import Plan, TensorPlan
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor
    from llmq.system.progress import Progress

__all__ = ["BlockResult", "run_calibrated"]

_log = logging.getLogger("llmq")

_START: Final = "gptq"
"""What training begins with."""

_HELD: Final = 8
"""One of so many windows is kept apart to judge by."""

_NAME: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class BlockResult:
    """How a block came out.

    Parameters
    ----------
    layer : int
    method : str
        What was kept.
    error, data_free_error : float
        Of the block's outputs on text kept apart, squared, over what the block changes: by the calibrated method, and
        by the data-free one.
    """

    layer: int
    method: str
    error: float
    data_free_error: float


def run_calibrated(
    plan: Plan,
    source: Source,
    writer: CheckpointWriter,
    progress: Progress,
    *,
    calibration: Calibration,
    nonfinite: str = "error",
) -> tuple[tuple[BlockResult, ...], dict[str, EdgeCounts]]:
    """Write every tensor of the plan that an earlier run has not written.

    A block's statistics are those of the text as it comes through the quantized blocks before. It should make of that
    text what the original block makes of it, or, where it is trained, what the original blocks have made of the text.
    Where the calibrated method leaves more error than the data-free one on windows kept apart, that one is kept for
    the block.

    Returns
    -------
    blocks : tuple of BlockResult
    edges : dict of str to EdgeCounts
        As of `run_plan`.

    Raises
    ------
    UnsupportedError
        An architecture that llmq cannot run.
    NonfiniteError, InputError
        As for `run_plan`; or the model itself makes NaN or infinity of the text.
    """
    blocks = _blocks(plan)
    inside = {tensor.name for tensors in blocks for tensor in tensors}
    outside = tuple(tensor for tensor in plan.tensors if tensor.name not in inside)
    others = replace(plan, recipe=replace(plan.recipe, method=DATA_FREE), tensors=outside)
    progress.start("quantizing", bytes_to_read(others, writer))
    edges = run_plan(others, source, writer, progress, nonfinite=nonfinite)
    progress.finish()
    run = _CalibratedRun(plan, source, writer, calibration)
    try:
        with threadpool_limits(threads(), "blas"):
            start = run.resume(blocks)
            left = [t for tensors in blocks[start:] for t in tensors]
            progress.start("calibrating", sum(t.info.nbytes for t in left))
            results = [run.block(layer, tensors, progress) for layer, tensors in enumerate(blocks) if layer >= start]
            progress.finish()
    finally:
        run.close()
    source.check_unchanged()
    return tuple(results), edges | run.edges


def _blocks(plan: Plan) -> list[list[TensorPlan]]:
    """Quantized linears of each decoder block."""
    blocks: dict[int, list[TensorPlan]] = {}
    for tensor in plan.quantized:
        found = _NAME.fullmatch(tensor.name)
        if found and found[2] in PROJECTIONS:
            blocks.setdefault(int(found[1]), []).append(tensor)
    return [blocks.get(layer, []) for layer in range(max(blocks, default=-1) + 1)]


def _projection(tensor: TensorPlan) -> str:
    found = _NAME.fullmatch(tensor.name)
    assert found is not None
    return PROJECTIONS[found[2]]


class _CalibratedRun:
    """The blocks of a run, one after the other."""

    def __init__(self, plan: Plan, source: Source, writer: CheckpointWriter, calibration: Calibration) -> None:
        self._plan = plan
        self._writer = writer
        self._calibration = calibration
        self._config = decoder_config(source.config)
        self._loaded = LoadedCheckpoint(source)
        self._method = METHODS[plan.recipe.method]
        self.edges: dict[str, EdgeCounts] = {}
        self._windows, context = calibration.tokens.shape
        self._context = context
        self._held = max(1, self._windows // _HELD)
        # To train, the text is taken through the original blocks too: those windows stand behind the others.
        streams = 2 if self._method.needs == "block" else 1
        shape = (streams * self._windows, context, self._config.hidden_size)
        self._hidden = SavedStates(Scratch(writer.folder).shards, shape)
        self._tune = BlockTuner(source.config, self._hidden, self._held)

    def close(self) -> None:
        """Give files back; what an interrupted run needs stays."""
        self._hidden.close()

    def resume(self, blocks: Sequence[Sequence[TensorPlan]]) -> int:
        """The first block to quantize: that of an earlier run's hidden states, or 0 with the text's embeddings."""
        complete = 0
        while complete < len(blocks) and not any(missing_outputs(t, self._writer) for t in blocks[complete]):
            complete += 1
        if not self._hidden.resume(complete):
            for number, ids in enumerate(self._calibration.tokens):
                states = embed(self._loaded, ids)[None]
                for first in range(0, self._hidden.windows, self._windows):
                    self._hidden.write(first + number, states)
        return self._hidden.layer

    def block(self, layer: int, tensors: Sequence[TensorPlan], progress: Progress) -> BlockResult:
        """Quantize a block, write it, and take the hidden states through it."""
        block = assemble_block(self._config, Weights(self._loaded, None, "float32"), layer)
        runner = BlockRunner(self._config, layer, self._context)
        self._check(block, tensors)
        states, count = self._hidden, self._windows
        original = for_many(block)
        # A single window is counted and judged by.
        counted = (x for _, x in states.parts(range(count - self._held or count), runner.windows))
        statistics = watch(runner, original, counted, whole=self._method.whole_moments)
        inputs = states.read(count - self._held, count)
        wanted = self._wanted(runner, original, inputs)
        if not np.isfinite(wanted).all():
            raise InputError(f"block {layer} makes NaN or infinity of the text", file=self._loaded.source.label)
        free_error = runner.error(for_many(block, self._quantize(block, tensors, {}, DATA_FREE)), inputs, wanted)
        chosen = self._calibrated(layer, block, tensors, statistics, progress)
        error = runner.error(for_many(block, chosen), inputs, wanted)
        result = BlockResult(layer, self._plan.recipe.method, error, free_error)
        if tensors and not error <= free_error:
            chosen = self._quantize(block, tensors, {}, DATA_FREE)  # again: both would take memory meanwhile
            result = replace(result, method=DATA_FREE)
            _log.warning(
                "block %d: %s leaves more error than %s on text kept apart (%.3g, %.3g), which is kept",
                layer, self._plan.recipe.method, DATA_FREE, error, free_error,
            )  # fmt: skip
        self._write(block, tensors, chosen)
        final = for_many(block, chosen)
        for start, x in states.parts(range(count), runner.windows):
            states.write(start, runner.run(final, x))
        states.save(layer + 1)
        return result

    def _wanted(self, runner: BlockRunner, original: Block, inputs: np.ndarray) -> np.ndarray:
        """What the block should make of the windows kept apart; what the original blocks make of the text goes on."""
        if self._method.needs != "block":
            return runner.outputs(original, inputs)
        count = self._windows
        for start, x in self._hidden.parts(range(count, 2 * count), runner.windows):
            self._hidden.write(start, runner.run(original, x))
        return self._hidden.read(2 * count - self._held, 2 * count)

    def _calibrated(
        self,
        layer: int,
        block: Block,
        tensors: Sequence[TensorPlan],
        statistics: dict[str, InputStatistics],
        progress: Progress,
    ) -> dict[str, QuantizedTensor]:
        """Quantize linears by the calibrated method, by projection."""
        if self._method.needs != "block":
            return self._quantize(block, tensors, statistics, self._plan.recipe.method, progress)
        starts = self._quantize(block, tensors, statistics, _START)
        nbytes = sum(tensor.info.nbytes for tensor in tensors)
        return self._tune(layer, block, starts, progress=progress, nbytes=nbytes) if tensors else {}

    def _check(self, block: Block, tensors: Sequence[TensorPlan]) -> None:
        """Refuse NaN and infinity in what is to be quantized."""
        for tensor in tensors:
            refuse_nonfinite(tensor, *count_nonfinite(_weight(block, tensor)))

    def _quantize(
        self,
        block: Block,
        tensors: Sequence[TensorPlan],
        statistics: dict[str, InputStatistics],
        method: str,
        progress: Progress | None = None,
    ) -> dict[str, QuantizedTensor]:
        """Quantize linears by projection; statistics are let go of as soon as nothing needs them any more."""
        found = {}
        for tensor in tensors:
            assert tensor.spec is not None
            name = _projection(tensor)
            own = statistics.pop(name, None)
            if own is not None and all(other is not own for other in statistics.values()):
                own = replace(own, spendable=True)
            found[name] = METHODS[method].quantize(_weight(block, tensor), tensor.spec, own)
            if progress is not None:
                progress.advance(tensor.info.nbytes)
        return found

    def _write(self, block: Block, tensors: Sequence[TensorPlan], weights: dict[str, QuantizedTensor]) -> None:
        for tensor in tensors:
            self._writer.note_source(tensor.name, self._checksum(block, tensor))
            sink = Sink(tensor, missing_outputs(tensor, self._writer), self._writer)
            sink.count(_weight(block, tensor), weights[_projection(tensor)])
            sink.write(weights[_projection(tensor)])
            sink.finish()
            self.edges[tensor.name] = sink.counts

    def _checksum(self, block: Block, tensor: TensorPlan) -> str:
        """XXH3-128 of a weight as it stands in the source."""
        weight = _weight(block, tensor)
        if weight.dtype != NUMPY_DTYPES[tensor.info.dtype]:  # widened or narrowed for the kernels
            weight = self._loaded.tensor(tensor.name)
        return xxh3_128(weight.reshape(-1).view(np.uint8).data).hexdigest()


def _weight(block: Block, tensor: TensorPlan) -> np.ndarray:
    linear = block.linears[_projection(tensor)]
    assert isinstance(linear, DenseLinear)
    return linear.weight
