"""Rows of a weight as float32, whether it is packed or not, read from its file."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.formats import FORMATS
from llmq.formats.dense import to_float32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source
    from llmq.evaluate.inventory import Entry
    from llmq.spec import QuantizedTensor

__all__ = ["raw_bytes", "read_bytes", "read_quantized", "read_rows", "stored_rows"]

_PIECE: Final = 4 << 20


def raw_bytes(source: Source, info: TensorInfo) -> Iterator[np.ndarray]:
    """Bytes of a stored tensor in pieces, uint8 (n,)."""
    for start in range(0, info.nbytes, _PIECE):
        yield read_bytes(source, info, start, min(info.nbytes, start + _PIECE))


def read_rows(source: Source, entry: Entry, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of a weight as float32 (rows, columns).

    Parameters
    ----------
    source : Source
        Open.
    entry : Entry
        Packed, or of a float dtype that safetensors has beside those of 8 bits.
    start, stop : int
        `start` is a multiple of 32, for zero points are packed across rows.
    """
    if entry.spec is None:
        info = entry.parts[""]
        rows = info.shape[0] if info.shape else 1
        raw = read_bytes(source, info, start * info.nbytes // max(1, rows), stop * info.nbytes // max(1, rows))
        return to_float32(raw, info.dtype, np.empty((stop - start, prod(info.shape[1:])), np.float32))
    return read_quantized(source, entry, start, stop).dequantize()


def read_quantized(source: Source, entry: Entry, start: int, stop: int) -> QuantizedTensor:
    """Rows `start` to `stop` of a packed weight, as they are stored; see `read_rows`."""
    assert entry.spec is not None
    arrays = stored_rows(source, entry, start, stop)
    arrays["weight_shape"] = np.array([stop - start, entry.shape[1]], np.int64)
    return FORMATS["compressed-tensors"].decode(arrays, entry.spec, entry.name.removesuffix(".weight"))


def stored_rows(source: Source, entry: Entry, start: int, stop: int) -> dict[str, np.ndarray]:
    """Rows of the stored tensors of a packed weight by suffix; what is not by rows as a whole. See `read_rows`."""
    return {suffix: _part(source, entry, suffix, start, stop) for suffix in entry.parts}


def _part(source: Source, entry: Entry, suffix: str, start: int, stop: int) -> np.ndarray:
    """Rows of one of the stored tensors of a packed weight."""
    info = entry.parts[suffix]
    if suffix in ("weight_shape", "weight_g_idx"):  # not by rows
        first, last = 0, info.shape[0]
    elif suffix == "weight_zero_point" and info.dtype == "I32":
        first, last = start * entry.bits // 32, -(-stop * entry.bits // 32)
    else:
        first, last = start, stop
    width = info.nbytes // max(1, info.shape[0])
    raw = read_bytes(source, info, first * width, min(last * width, info.nbytes))
    return raw.view(NUMPY_DTYPES[info.dtype]).reshape(-1, *info.shape[1:])


def read_bytes(source: Source, info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Bytes `start` to `stop` of a stored tensor, uint8 (stop - start,)."""
    raw = np.empty(stop - start, np.uint8)
    source.read_into(info, start, raw.data)
    return raw
