"""Carry out a plan whose method needs data: one decoder block in memory at a time, each on what those before give."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from threadpoolctl import threadpool_limits

from llmq.architectures import decoder_config
from llmq.checkpoint.journal import Scratch
from llmq.checkpoint.loaded import LoadedCheckpoint
from llmq.errors import InputError
from llmq.formats.compressed_tensors import encode
from llmq.methods import METHODS
from llmq.pipeline.block import PROJECTIONS, BlockRunner, linear_of, packed_block, watch
from llmq.pipeline.hidden import HiddenStates, embed
from llmq.pipeline.run import bytes_to_read, missing_outputs, refuse_nonfinite, run_plan
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
    from llmq.plan import Plan, TensorPlan
    from llmq.runtime.stack import Block
    from llmq.spec import QuantizedTensor
    from llmq.system.progress import Progress

__all__ = ["BlockResult", "run_calibrated"]

_log = logging.getLogger("llmq")

_DATA_FREE: Final = "mse"
"""What calibrated methods are measured against, and what tensors outside the blocks get."""

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
) -> tuple[BlockResult, ...]:
    """Write every tensor of the plan that an earlier run has not written.

    A block's statistics are those of the text as it comes through the quantized blocks before. Where the calibrated
    method leaves more error than the data-free one on windows kept apart, that one is kept for the block.

    Raises
    ------
    UnsupportedError
        An architecture that llmq cannot run.
    NonfiniteError, InputError
        As for `run_plan`; or the model itself makes NaN or infinity of the text.
    """
    blocks = _blocks(plan)
    outside = tuple(t for t in plan.tensors if not any(t in tensors for tensors in blocks))
    others = replace(plan, recipe=replace(plan.recipe, method=_DATA_FREE), tensors=outside)
    progress.start("quantizing", bytes_to_read(others, writer))
    run_plan(others, source, writer, progress, nonfinite=nonfinite)
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
    return tuple(results)


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
        windows, context = calibration.tokens.shape
        self._context = context
        self._held = max(1, windows // _HELD)
        folder = Scratch(writer.folder).shards
        self._hidden = HiddenStates(folder, (windows, context, self._config.hidden_size))

    def close(self) -> None:
        """Give files back; what an interrupted run needs stays."""
        self._hidden.close()

    def resume(self, blocks: Sequence[Sequence[TensorPlan]]) -> int:
        """The first block to quantize: that of an earlier run's hidden states, or 0 with the text's embeddings."""
        complete = 0
        while complete < len(blocks) and not any(missing_outputs(t, self._writer) for t in blocks[complete]):
            complete += 1
        if not self._hidden.resume(complete):
            self._embed()
        return self._hidden.layer

    def _embed(self) -> None:
        embed(self._loaded, self._calibration.tokens, self._hidden.array)

    def block(self, layer: int, tensors: Sequence[TensorPlan], progress: Progress) -> BlockResult:
        """Quantize a block, write it, and take the hidden states through it."""
        method = METHODS[self._plan.recipe.method]
        block = assemble_block(self._config, Weights(self._loaded, None, "float32"), layer)
        runner = BlockRunner(self._config, layer, self._context)
        states = self._hidden.array
        self._check(block, tensors)
        statistics, wanted = watch(runner, block, states, held=self._held, whole=method.needs == "moments")
        if not np.isfinite(wanted).all():
            raise InputError(f"block {layer} makes NaN or infinity of the text", file=self._loaded.source.label)
        inputs = states[len(states) - self._held :]
        free_error = runner.error(packed_block(block, self._quantize(block, tensors, {}, _DATA_FREE)), inputs, wanted)
        chosen = self._quantize(block, tensors, statistics, self._plan.recipe.method, progress)
        error = runner.error(packed_block(block, chosen), inputs, wanted)
        result = BlockResult(layer, self._plan.recipe.method, error, free_error)
        if tensors and not error <= free_error:
            chosen = self._quantize(block, tensors, {}, _DATA_FREE)  # again: both would take memory meanwhile
            result = replace(result, method=_DATA_FREE)
            _log.warning(
                "block %d: %s leaves more error than %s on text kept apart (%.3g, %.3g), which is kept",
                layer, self._plan.recipe.method, _DATA_FREE, error, free_error,
            )  # fmt: skip
        self._write(tensors, chosen)
        final = packed_block(block, chosen)
        for x in runner.parts(states):
            runner.run(final, x)
        self._hidden.save(layer + 1)
        return result

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

    def _write(self, tensors: Sequence[TensorPlan], weights: dict[str, QuantizedTensor]) -> None:
        for tensor in tensors:
            missing, module = missing_outputs(tensor, self._writer), tensor.name.removesuffix(".weight")
            arrays = encode(weights[_projection(tensor)])
            arrays["weight_shape"] = np.array(tensor.info.shape, "<i8")
            for suffix, array in arrays.items():
                if f"{module}.{suffix}" in missing:
                    self._writer.write(f"{module}.{suffix}", np.ascontiguousarray(array))


def _weight(block: Block, tensor: TensorPlan) -> np.ndarray:
    linear = linear_of(block, _projection(tensor))
    assert isinstance(linear, DenseLinear)
    return linear.weight
