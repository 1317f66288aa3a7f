"""Carry a plan out: read rows, quantize them, write them; never more than one block in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq.errors import InputError
from llmq.formats.compressed_tensors import encode
from llmq.methods import METHODS
from llmq_kernels.floats import widen
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.source import Source
    from llmq.checkpoint.writer import CheckpointWriter
    from llmq.plan import Plan, TensorPlan
    from llmq.system.progress import Progress

__all__ = ["nonfinite_tensors", "run_plan"]


def run_plan(plan: Plan, source: Source, writer: CheckpointWriter, progress: Progress) -> None:
    """Write every tensor of the plan that an earlier run has not written.

    Raises
    ------
    InputError
        A weight to be quantized holds NaN or infinity, or the source changed while it was read.
    """
    for tensor in plan.tensors:
        missing = frozenset(o.name for o in tensor.outputs) - writer.completed
        if not missing:
            progress.advance(tensor.info.nbytes)
        elif tensor.spec is None:
            _copy(tensor, source, writer, progress)
        else:
            _quantize(tensor, plan.recipe.method, missing, source, writer, progress)
    source.check_unchanged()


def nonfinite_tensors(plan: Plan, source: Source, progress: Progress) -> frozenset[str]:
    """Names of the tensors to be quantized that hold NaN or infinity: one pass over their bytes."""
    names = set()
    for tensor in plan.quantized:
        for rows in _row_blocks(tensor, source):
            if any(count_nonfinite(rows)):
                names.add(tensor.name)
            progress.advance(rows.size * tensor.info.nbytes // tensor.parameters)
    return frozenset(names)


def _copy(tensor: TensorPlan, source: Source, writer: CheckpointWriter, progress: Progress) -> None:
    # For a copied tensor a "row" is one element.
    step = tensor.rows_per_block * max(1, tensor.info.nbytes // max(1, tensor.parameters))
    buffer = bytearray(min(step, tensor.info.nbytes))
    for start in range(0, tensor.info.nbytes, step):
        view = memoryview(buffer)[: min(step, tensor.info.nbytes - start)]
        source.read_into(tensor.info, start, view)
        writer.write(tensor.name, view)
        progress.advance(len(view))
    if not tensor.info.nbytes:
        writer.write(tensor.name, b"")


def _quantize(
    tensor: TensorPlan,
    method: str,
    missing: frozenset[str],
    source: Source,
    writer: CheckpointWriter,
    progress: Progress,
) -> None:
    assert tensor.spec is not None
    module = tensor.name.removesuffix(".weight")
    nan = infinite = 0
    for rows in _row_blocks(tensor, source):
        block_nan, block_infinite = count_nonfinite(rows)
        nan, infinite = nan + block_nan, infinite + block_infinite
        if not nan + infinite:
            for suffix, array in encode(METHODS[method](rows, tensor.spec)).items():
                name = f"{module}.{suffix}"
                if name in missing:
                    writer.write(name, np.ascontiguousarray(array))
        progress.advance(rows.shape[0] * (tensor.info.nbytes // tensor.info.shape[0]))
    if nan + infinite:
        raise InputError(
            "weight is not finite",
            file=tensor.info.file,
            tensor=tensor.name,
            found=f"{nan} NaN and {infinite} infinite of {tensor.parameters} values",
            hint="--nonfinite keep leaves such tensors as they are",
        )
    if f"{module}.weight_shape" in missing:
        writer.write(f"{module}.weight_shape", np.array(tensor.info.shape, "<i8"))


def _row_blocks(tensor: TensorPlan, source: Source) -> Iterator[np.ndarray]:
    """Blocks of rows as float32 (rows, in_features); each is valid until the next is asked for."""
    rows, columns = tensor.info.shape
    step = min(rows, tensor.rows_per_block)
    row_bytes = tensor.info.nbytes // rows
    buffer = np.empty(step * row_bytes, np.uint8)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        raw = buffer[: count * row_bytes]
        source.read_into(tensor.info, start * row_bytes, raw.data)
        yield _to_float32(raw, tensor.info.dtype).reshape(count, columns)


def _to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "F64":
        with np.errstate(over="ignore"):  # what overflows is found as infinite
            return raw.view("<f8").astype(np.float32)
    return widen(raw.view("<u2"), {"F16": "float16", "BF16": "bfloat16"}[dtype])
