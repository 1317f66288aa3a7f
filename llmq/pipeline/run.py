"""Carry a plan out: read rows, quantize them, write them; never more than one block in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.errors import InputError
from llmq.formats.compressed_tensors import encode
from llmq.formats.dense import to_float32
from llmq.methods import METHODS
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.source import Source
    from llmq.checkpoint.writer import CheckpointWriter
    from llmq.plan import Plan, TensorPlan
    from llmq.system.progress import Progress

__all__ = ["NonfiniteError", "bytes_to_read", "nonfinite_tensors", "run_plan"]


class NonfiniteError(InputError):
    """A tensor holds NaN or infinity: the same run would fail again, however often it is continued."""


def run_plan(
    plan: Plan, source: Source, writer: CheckpointWriter, progress: Progress, *, nonfinite: str = "error"
) -> None:
    """Write every tensor of the plan that an earlier run has not written.

    `nonfinite` is "error", or "keep" to copy NaN and infinity in tensors that are not quantized.

    Raises
    ------
    NonfiniteError
        A tensor holds NaN or infinity.
    InputError
        The source cannot be read, or changed while it was read.
    """
    for tensor in plan.tensors:
        missing = _missing(tensor, writer)
        if not missing:
            continue
        if tensor.spec is None:
            _copy(tensor, source, writer, progress, checked=nonfinite == "error")
        else:
            _quantize(tensor, plan.recipe.method, missing, source, writer, progress)
    source.check_unchanged()


def bytes_to_read(plan: Plan, writer: CheckpointWriter) -> int:
    """Bytes of the tensors that an earlier run has not written."""
    return sum(tensor.info.nbytes for tensor in plan.tensors if _missing(tensor, writer))


def _missing(tensor: TensorPlan, writer: CheckpointWriter) -> frozenset[str]:
    return frozenset(output.name for output in tensor.outputs) - writer.completed


def nonfinite_tensors(plan: Plan, source: Source, progress: Progress) -> frozenset[str]:
    """Names of the tensors to be quantized that hold NaN or infinity: one pass over their bytes."""
    names = set()
    for tensor in plan.quantized:
        for rows in _row_blocks(tensor, source):
            if any(count_nonfinite(rows)):
                names.add(tensor.name)
            progress.advance(rows.size * tensor.info.nbytes // tensor.parameters)
    return frozenset(names)


def _copy(tensor: TensorPlan, source: Source, writer: CheckpointWriter, progress: Progress, *, checked: bool) -> None:
    # For a copied tensor a "row" is one element.
    info = tensor.info
    step = tensor.rows_per_block * max(1, info.nbytes // max(1, tensor.parameters))
    buffer = np.empty(min(step, info.nbytes), np.uint8)
    found = np.zeros(2, np.int64)
    for start in range(0, info.nbytes, step):
        raw = buffer[: min(step, info.nbytes - start)]
        source.read_into(info, start, raw.data)
        if checked and info.dtype in _FLOAT_BITS:
            found += _count_nonfinite_bits(raw, info.dtype)
        writer.write(tensor.name, raw)
        progress.advance(raw.size)
    _refuse_nonfinite(tensor, *found.tolist())


_FLOAT_BITS: Final = {
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}
"""Of each float dtype: its bits as an integer, all but the sign, and those of infinity."""


def _count_nonfinite_bits(raw: np.ndarray, dtype: str) -> tuple[int, int]:
    """Numbers of NaN and of infinities in the bytes of a tensor."""
    integer, magnitude, infinity = _FLOAT_BITS[dtype]
    bits = raw.view(integer) & np.array(magnitude, integer)
    return int(np.count_nonzero(bits > infinity)), int(np.count_nonzero(bits == infinity))


def _refuse_nonfinite(tensor: TensorPlan, nan: int, infinite: int) -> None:
    if nan + infinite:
        raise NonfiniteError(
            "weight is not finite",
            file=tensor.info.file,
            tensor=tensor.name,
            found=f"{nan} NaN and {infinite} infinite of {tensor.parameters} values",
            hint="--nonfinite keep leaves such tensors as they are",
        )


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
    _refuse_nonfinite(tensor, nan, infinite)
    if f"{module}.weight_shape" in missing:
        writer.write(f"{module}.weight_shape", np.array(tensor.info.shape, "<i8"))


def _row_blocks(tensor: TensorPlan, source: Source) -> Iterator[np.ndarray]:
    """Blocks of rows as float32 (rows, in_features); each is valid until the next is asked for."""
    rows, columns = tensor.info.shape
    step = min(rows, tensor.rows_per_block)
    row_bytes = tensor.info.nbytes // rows
    raw = np.empty(step * row_bytes, np.uint8)
    widened = np.empty((step, columns), np.float32)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        read, block = raw[: count * row_bytes], widened[:count]
        source.read_into(tensor.info, start * row_bytes, read.data)
        yield to_float32(read, tensor.info.dtype, block)
