"""Write a checkpoint whose quantized weights somebody else has chosen, such as training."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import llmq
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.source import open_local, select_copies
from llmq.checkpoint.writer import CheckpointWriter
from llmq.errors import InputError, UsageError
from llmq.formats.fp8 import dequantized
from llmq.pipeline.outputs import check_disk, check_folders
from llmq.pipeline.report import QuantizeReport
from llmq.pipeline.run import Sink, missing_outputs, run_plan
from llmq.plan import build_plan
from llmq.spec import Assigned, QuantizedTensor, QuantSpec, Recipe
from llmq.system.memory import PeakMemory
from llmq.system.progress import NullProgress
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.checkpoint.source import Source
    from llmq.plan import Plan, TensorPlan

__all__ = ["write_given"]

_METHOD: Final = "given"
"""What stands for a method in the manifest."""


def write_given(
    model: str | Path,
    output: str | Path,
    weights: Mapping[str, QuantizedTensor],
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> QuantizeReport:
    """Write the checkpoint of a model with given quantized weights; the rest is copied from the original.

    Parameters
    ----------
    model : str or Path
        The original checkpoint, as for `llmq.quantize`.
    output : str or Path
        Folder to write.
    weights : mapping of str to QuantizedTensor
        By tensor name, such as ``model.layers.0.mlp.up_proj.weight``. Linears, head and embedding table that are not
        among them stay in floating point.
    tensors : mapping of str to array, optional
        Float values, rounded to the original's dtypes, of tensors that stay so but have changed: norms, say.
    settings : mapping, optional
        How the weights came about, JSON-able; the manifest keeps it.
    overwrite : bool
        Replace what `output` holds.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    UsageError
        Names that the model has not or that cannot be quantized, other shapes, grids that one checkpoint cannot mix, or
        settings that are no JSON.
    InputError
        NaN or infinity.
    LlmqError
        As for `llmq.quantize`; nothing half-written is ever published.
    """
    began, output = time.perf_counter(), Path(output)
    changed = {name: np.asarray(values) for name, values in (tensors or {}).items()}
    _refuse_settings(settings)
    with open_local(model) as opened, PeakMemory() as memory:
        source = dequantized(opened)
        check_folders(source, output)
        _check_names(source, weights)
        plan = build_plan(source, _recipe(source, weights))
        _check(plan, source, weights, changed)
        check_disk(output, plan)
        identity = {
            "llmq_version": llmq.__version__,
            "settings": {"method": _METHOD} | dict(settings or {}),
            "source": source.identity(),
        }
        copies, skipped = select_copies(source)
        # Nothing tells these weights from those of another training, so an interrupted run starts over.
        with CheckpointWriter(output, plan.shards, identity=identity, overwrite=overwrite, resume=False) as writer:
            try:
                _write(plan, source, writer, weights, changed)
            except BaseException:
                writer.discard()
                raise
            writer.commit(plan.config, copies)
    return QuantizeReport(
        output,
        plan,
        "quantized",
        time.perf_counter() - began,
        memory.peak_anon,
        memory.peak_rss,
        skipped,
        memory=tuple(memory.series),
    )


def _refuse_settings(settings: Mapping[str, Any] | None) -> None:
    try:
        json.dumps(dict(settings or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"settings must be JSON-able: {error}") from error


def _check_names(source: Source, weights: Mapping[str, Any]) -> None:
    for name, q in weights.items():
        if name not in source.tensors:
            raise UsageError("is no tensor of the model", file=source.label, tensor=name)
        if not isinstance(q, QuantizedTensor):
            found = type(q).__name__
            raise UsageError(
                "is not quantized", file=source.label, tensor=name, expected="QuantizedTensor", found=found
            )


def _recipe(source: Source, weights: Mapping[str, QuantizedTensor]) -> Recipe:
    """A recipe under which exactly these weights are quantized, each as it is."""
    if not weights:
        raise UsageError("no quantized weights are given", file=source.label)
    grids = {(q.spec.range, q.spec.signed_scale, q.spec.scale_dtype) for q in weights.values()}
    if len(grids) > 1:
        raise UsageError("one checkpoint has one range and one dtype of scales", file=source.label, found=sorted(grids))
    first = next(iter(weights.values())).spec
    assigned = [Assigned(n, q.spec.bits, q.spec.group_size, q.spec.symmetric) for n, q in weights.items()]
    kept = [Assigned(name, None) for name in source.tensors if name not in weights]
    return Recipe(
        spec=replace(first, strategy="group"), method=_METHOD, lm_head=None, embeddings=None,
        assigned=(*assigned, *kept),
    )  # fmt: skip


def _check(
    plan: Plan, source: Source, weights: Mapping[str, QuantizedTensor], changed: Mapping[str, np.ndarray]
) -> None:
    """Refuse what does not fit the model."""
    planned = {t.name: t for t in plan.tensors}
    for name, q in weights.items():
        tensor = planned[name]
        if tensor.spec is None:
            raise UsageError("cannot be quantized", file=source.label, tensor=name, found=tensor.reason)
        _same_shape(tensor, q.shape, source)
        _same_grid(tensor, q.spec, source)
    for name, array in changed.items():
        if name not in planned or name in weights:
            what = "is quantized" if name in weights else "is no tensor of the model"
            raise UsageError(what, file=source.label, tensor=name)
        _same_shape(planned[name], array.shape, source)


def _same_shape(tensor: TensorPlan, found: tuple[int, ...], source: Source) -> None:
    if tuple(found) != tensor.info.shape:
        expected = list(tensor.info.shape)
        raise UsageError("shape does not fit", file=source.label, tensor=tensor.name, expected=expected, found=found)


def _same_grid(tensor: TensorPlan, spec: QuantSpec, source: Source) -> None:
    assert tensor.spec is not None
    fields = ("bits", "group_size", "symmetric", "scale_dtype")
    expected, found = ({f: getattr(s, f) for f in fields} for s in (tensor.spec, spec))
    if expected != found:
        raise UsageError("grid does not fit", file=source.label, tensor=tensor.name, expected=expected, found=found)


def _write(
    plan: Plan,
    source: Source,
    writer: CheckpointWriter,
    weights: Mapping[str, QuantizedTensor],
    changed: Mapping[str, np.ndarray],
) -> None:
    copied = tuple(t for t in plan.tensors if t.name not in weights and t.name not in changed)
    run_plan(replace(plan, tensors=copied), source, writer, NullProgress())
    for tensor in plan.tensors:
        if tensor.name in weights:
            _write_weight(tensor, weights[tensor.name], writer)
        elif tensor.name in changed:
            with np.errstate(over="ignore"):  # infinity is refused
                values = np.ascontiguousarray(changed[tensor.name], NUMPY_DTYPES[tensor.info.dtype])
            _refuse_nonfinite(tensor.name, values)
            writer.write(tensor.name, values)


def _write_weight(tensor: TensorPlan, q: QuantizedTensor, writer: CheckpointWriter) -> None:
    _refuse_nonfinite(tensor.name, q.scale)
    sink = Sink(tensor, missing_outputs(tensor, writer), writer)
    sink.write(q)
    sink.finish()


def _refuse_nonfinite(name: str, values: np.ndarray) -> None:
    nan, infinite = count_nonfinite(values)
    if nan + infinite:
        raise InputError("not finite", tensor=name, found=f"{nan} NaN and {infinite} infinite of {values.size} values")
