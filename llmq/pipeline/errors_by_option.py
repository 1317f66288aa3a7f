"""What each option would cost each tensor, from a sample of its rows: one pass that reads little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES, bytes_per_element
from llmq.formats.dense import to_float32
from llmq.methods import METHODS
from llmq.observers.inputs import InputStatistics
from llmq.pipeline.run import refuse_nonfinite
from llmq.plan.budget import BLOCK_BYTES, PROCESS_BYTES
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source
    from llmq.plan import TensorPlan
    from llmq.system.progress import Progress

__all__ = ["measure_errors", "sampled_rows"]

_ELEMENTS: Final = 1 << 18
_FEWEST_ROWS: Final = 64
_MOST_ROWS: Final = 256

_FLOATS_PER_ELEMENT: Final = 8
"""Working memory for an element of the rows in memory, in float32: as read, wide, dequantized, errors, codes."""

_QUICK: Final = ("rtn", "hqq", "mse")
"""Methods without data that measure themselves; `mse` stands in for slower ones, which order widths alike."""


def sampled_rows(rows: int, columns: int) -> np.ndarray:
    """Numbers of the rows to measure: 64 to 256 spread evenly, about 2**18 elements; int64, rising.

    >>> sampled_rows(1024, 8192)[:3]
    array([ 8, 24, 40])
    """
    count = min(rows, max(_FEWEST_ROWS, min(_MOST_ROWS, _ELEMENTS // max(1, columns))))
    return (2 * np.arange(count, dtype=np.int64) + 1) * rows // (2 * count)


def measure_errors(
    tensors: Sequence[TensorPlan],
    source: Source,
    progress: Progress,
    *,
    method: str,
    energies: Mapping[str, np.ndarray],
    max_memory: int | None = None,
) -> dict[str, list[float]]:
    """Relative errors of tensors at each of their options.

    With `dW` the error of a weight `W` and `a` the energies of its inputs, or 1: ``sum a dW**2 / sum a W**2`` over
    `sampled_rows`. The result does not depend on threads, nor on the memory there is.

    Parameters
    ----------
    tensors : sequence of TensorPlan
        With options.
    source : Source
    progress : Progress
        Told of tensors.
    method : str
        How the weights will be quantized.
    energies : mapping
        float32 (in_features,) by tensor name, where known.
    max_memory : int or None
        Bound on the anonymous memory of the process.

    Returns
    -------
    dict of list of float
        By tensor name, in the order of its options.

    Raises
    ------
    NonfiniteError
        A sampled row holds NaN or infinity.
    InputError
        The source cannot be read.
    """
    room = BLOCK_BYTES if max_memory is None else min(BLOCK_BYTES, max(1 << 20, max_memory - PROCESS_BYTES))
    progress.start("measuring errors", len(tensors), "tensors")
    found = {}
    for tensor in tensors:
        found[tensor.name] = _errors(tensor, source, method, energies.get(tensor.name), room)
        progress.advance(1)
    progress.finish()
    return found


def _errors(tensor: TensorPlan, source: Source, method: str, energy: np.ndarray | None, room: int) -> list[float]:
    stands_in = _stand_in(method, energy)
    weights = np.ones(tensor.info.shape[1]) if energy is None else energy.astype(np.float64)
    statistics = None if energy is None else InputStatistics(energy, 1)
    lost: list[list[float]] = [[] for _ in tensor.options]
    whole: list[float] = []
    for rows in _pieces(tensor.info, source, room):
        refuse_nonfinite(tensor, *count_nonfinite(rows))
        wide = rows.astype(np.float32)
        whole += _weighted(wide, weights)
        for sums, spec in zip(lost, tensor.options, strict=True):
            q = METHODS[stands_in].quantize(rows, spec, statistics)
            sums.extend(_weighted(wide - q.dequantize(), weights))
    total = float(np.sum(whole))
    return [float(np.sum(sums)) / total if total else 0.0 for sums in lost]


def _stand_in(method: str, energy: np.ndarray | None) -> str:
    if METHODS[method].needs != "nothing" and energy is not None:
        return "imatrix"
    return method if method in _QUICK else "mse"


def _weighted(errors: np.ndarray, weights: np.ndarray) -> list[float]:
    """Sum of ``weights * errors**2`` of each row: the pieces that rows come in change nothing."""
    return [float(np.sum(np.square(row, dtype=np.float64) * weights)) for row in errors]


def _pieces(info: TensorInfo, source: Source, room: int) -> Iterator[np.ndarray]:
    """Sampled rows, a few at a time: float16, bfloat16 or float32 (rows, in_features)."""
    columns = info.shape[1]
    stride = columns * bytes_per_element(info.dtype)
    numbers = sampled_rows(*info.shape)
    step = max(1, room // (4 * _FLOATS_PER_ELEMENT * columns))
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step]
        raw = np.empty((len(part), stride), np.uint8)
        for row, number in zip(raw, part.tolist(), strict=True):
            source.read_into(info, number * stride, row.data)
        if info.dtype == "F64":
            yield to_float32(raw.reshape(-1), info.dtype, np.empty((len(part), columns), np.float32))
        else:
            yield raw.view(NUMPY_DTYPES[info.dtype])
