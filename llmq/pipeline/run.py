"""Carry a plan out: one thread reads rows, the kernels quantize them, one thread writes; a few blocks are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from llmq.checkpoint.dtypes import FLOATS, NUMPY_DTYPES
from llmq.errors import InputError
from llmq.formats.compressed_tensors import encode
from llmq.formats.dense import to_float32
from llmq.methods import METHODS
from llmq.pipeline.edges import EdgeCounts, check_scales, count_edges
from llmq.pipeline.read_ahead import Block, ReadAhead
from llmq.pipeline.write_behind import WriteBehind
from llmq.plan.budget import BLOCKS_READ, BLOCKS_WRITTEN
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llmq.checkpoint.source import Source
    from llmq.checkpoint.writer import CheckpointWriter
    from llmq.plan import Plan, TensorPlan
    from llmq.spec import QuantizedTensor, Watch
    from llmq.system.progress import Progress

__all__ = [
    "NonfiniteError",
    "Sink",
    "bytes_to_read",
    "missing_outputs",
    "nonfinite_tensors",
    "refuse_nonfinite",
    "run_plan",
    "whole_rows",
]

_Read = tuple[np.ndarray, "Callable[[], None]"]
"""Bytes of a block, and a function that gives its buffer back."""


class NonfiniteError(InputError):
    """A tensor holds NaN or infinity: the same run would fail again, however often it is continued."""


def run_plan(
    plan: Plan,
    source: Source,
    writer: CheckpointWriter,
    progress: Progress,
    *,
    nonfinite: str = "error",
    watch: Watch | None = None,
) -> dict[str, EdgeCounts]:
    """Write every tensor of the plan that an earlier run has not written.

    `nonfinite` is "error", or "keep" to copy NaN and infinity in tensors that are not quantized; `watch` sees what
    each block of rows became.

    Returns
    -------
    dict of str to EdgeCounts
        Of the tensors that were quantized, by name, and of those that were copied with NaN or infinity.

    Raises
    ------
    NonfiniteError
        A tensor holds NaN or infinity.
    InputError
        The source cannot be read, or changed while it was read.
    """
    order = sorted(plan.tensors, key=_place) if source.in_file_order else plan.tensors
    jobs = [(tensor, missing) for tensor in order if (missing := missing_outputs(tensor, writer))]
    tensors = [tensor for tensor, _ in jobs]
    found = {}
    with _reading(tensors, source) as ahead, WriteBehind(writer, BLOCKS_WRITTEN) as behind:
        reads = iter(ahead)
        for tensor, missing in jobs:
            blocks = _noted(islice(reads, len(_blocks(tensor))), tensor.name, ahead, behind)
            if tensor.spec is None:
                counts = _copy(tensor, blocks, behind, progress, refuse=nonfinite == "error")
            else:
                quantize = _Step(tensor, plan.recipe.method, watch)
                counts = _quantize(quantize, blocks, Sink(tensor, missing, behind), progress)
            if counts != EdgeCounts():
                found[tensor.name] = counts
    source.check_unchanged()
    return found


def _noted(blocks: Iterable[_Read], name: str, ahead: ReadAhead, behind: WriteBehind) -> Iterator[_Read]:
    """Pass a tensor's blocks on, and its checksum to the writer before the last of them."""
    for block in blocks:
        if name in ahead.digests:
            behind.note_source(name, ahead.digests.pop(name))
        yield block


def _place(tensor: TensorPlan) -> tuple[str, int]:
    return tensor.info.file, tensor.info.offset


def _reading(tensors: Sequence[TensorPlan], source: Source) -> ReadAhead:
    """Read all blocks of `tensors` in order."""
    blocks = (block for tensor in tensors for block in _blocks(tensor))
    size = max((_block_bytes(tensor) for tensor in tensors), default=0)
    return ReadAhead(source, blocks, size, BLOCKS_READ)


def _block_bytes(tensor: TensorPlan) -> int:
    info = tensor.info
    # For a copied tensor a "row" is one element.
    rows = info.shape[0] if tensor.spec else tensor.parameters
    return min(info.nbytes, tensor.rows_per_block * (info.nbytes // max(1, rows)))


def _blocks(tensor: TensorPlan) -> Sequence[Block]:
    """Cut a tensor into blocks of whole rows."""
    step, nbytes = _block_bytes(tensor), tensor.info.nbytes
    return [Block(tensor.info, start, min(step, nbytes - start)) for start in range(0, nbytes, max(1, step))]


def bytes_to_read(plan: Plan, writer: CheckpointWriter) -> int:
    """Bytes of the tensors that an earlier run has not written."""
    return sum(tensor.info.nbytes for tensor in plan.tensors if missing_outputs(tensor, writer))


def missing_outputs(tensor: TensorPlan, writer: CheckpointWriter) -> frozenset[str]:
    """Parts of a tensor that an earlier run has not written."""
    return frozenset(output.name for output in tensor.outputs) - writer.completed


def nonfinite_tensors(plan: Plan, source: Source, progress: Progress) -> frozenset[str]:
    """Names of the tensors to be quantized that hold NaN or infinity: one pass over their bytes."""
    names = set()
    with _reading(plan.quantized, source) as ahead:
        reads = iter(ahead)
        for tensor in plan.quantized:
            for raw, release in islice(reads, len(_blocks(tensor))):
                if any(_count_nonfinite(raw, tensor)):
                    names.add(tensor.name)
                release()
                progress.advance(raw.size)
    return frozenset(names)


def _count_nonfinite(raw: np.ndarray, tensor: TensorPlan) -> np.ndarray:
    """Numbers of NaN and of infinities in a block of a tensor, int64 (2,); as float32 where it is to be quantized."""
    dtype = tensor.info.dtype
    if dtype not in FLOATS:
        return np.zeros(2, np.int64)
    values = whole_rows(raw, tensor) if tensor.spec else raw.view(NUMPY_DTYPES[dtype])
    return np.array(count_nonfinite(values), np.int64)


def whole_rows(raw: np.ndarray, tensor: TensorPlan) -> np.ndarray:
    """View the bytes of whole rows as methods take them: float16, bfloat16 or float32 (rows, in_features)."""
    info = tensor.info
    if info.dtype == "F64":
        return to_float32(raw, info.dtype, np.empty((raw.size // 8 // info.shape[1], info.shape[1]), np.float32))
    return raw.view(NUMPY_DTYPES[info.dtype]).reshape(-1, info.shape[1])


def _copy(
    tensor: TensorPlan, blocks: Iterable[_Read], behind: WriteBehind, progress: Progress, *, refuse: bool
) -> EdgeCounts:
    found = np.zeros(2, np.int64)
    for raw, release in blocks:
        found += _count_nonfinite(raw, tensor)
        behind.write(tensor.name, raw, release)
        progress.advance(raw.size)
    if refuse:
        refuse_nonfinite(tensor, *found.tolist())
    return EdgeCounts(nonfinite_values=int(found.sum()))


def refuse_nonfinite(tensor: TensorPlan, nan: int, infinite: int) -> None:
    """Raise NonfiniteError if a tensor holds so many NaN and infinities, unless none."""
    if nan + infinite:
        single = " in float32" if tensor.spec and tensor.info.dtype == "F64" else ""
        raise NonfiniteError(
            "weight is not finite",
            file=tensor.info.file,
            tensor=tensor.name,
            found=f"{nan} NaN and {infinite} infinite{single} of {tensor.parameters} values",
            hint="--nonfinite keep leaves such tensors as they are",
        )


class Sink:
    """Takes what one weight becomes, and passes on the parts that an earlier run has not written.

    Attributes
    ----------
    counts : EdgeCounts
        Of all rows that were counted.
    """

    def __init__(self, tensor: TensorPlan, missing: frozenset[str], writer: WriteBehind | CheckpointWriter) -> None:
        self._tensor = tensor
        self._missing = missing
        self._writer = writer
        self.counts = EdgeCounts()

    def count(self, rows: np.ndarray, quantized: QuantizedTensor, *, alike: bool = False) -> None:
        """Count what the next rows and what they became have at the edges; see `count_edges`."""
        self.counts += count_edges(rows, quantized, alike=alike)

    def write(self, quantized: QuantizedTensor) -> None:
        """Append the next rows.

        Raises
        ------
        LlmqError
            A scale is zero or not finite.
        """
        arrays = encode(quantized)
        check_scales(self._tensor.name, arrays["weight_scale"])
        for suffix, array in arrays.items():
            self._write(suffix, array)

    def finish(self) -> None:
        """Write what all rows share."""
        self._write("weight_shape", np.array(self._tensor.info.shape, "<i8"))

    def _write(self, suffix: str, array: np.ndarray) -> None:
        name = f"{self._tensor.name.removesuffix('.weight')}.{suffix}"
        if name in self._missing:
            self._writer.write(name, np.ascontiguousarray(array))


@dataclass(frozen=True)
class _Step:
    """How the rows of one weight are quantized."""

    tensor: TensorPlan
    method: str
    watch: Watch | None

    def __call__(self, rows: np.ndarray) -> QuantizedTensor:
        """What a block of rows becomes; FloatingPointError if it is not finite."""
        assert self.tensor.spec is not None
        quantized = METHODS[self.method].quantize(rows, self.tensor.spec)
        if self.watch is not None:
            self.watch(self.tensor.name, rows, quantized)
        return quantized


def _quantize(step: _Step, blocks: Iterable[_Read], sink: Sink, progress: Progress) -> EdgeCounts:
    tensor = step.tensor
    found = np.zeros(2, np.int64)
    for raw, release in blocks:
        quantized = None
        try:
            if not found.any():
                rows = whole_rows(raw, tensor)
                quantized = step(rows)
                sink.count(rows, quantized, alike=True)
        except FloatingPointError:
            pass
        if quantized is None:
            found += _count_nonfinite(raw, tensor)
        release()
        if quantized is not None:
            sink.write(quantized)
        progress.advance(raw.size)
    refuse_nonfinite(tensor, *found.tolist())
    sink.finish()
    return sink.counts
