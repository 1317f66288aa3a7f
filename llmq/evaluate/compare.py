"""How far the weights of a packed checkpoint are from those it was made of, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10, sqrt
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_source
from llmq.errors import InputError
from llmq.formats.compressed_tensors import SUFFIXES, decode, read_schemes
from llmq.spec import QuantizedTensor
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import FolderSource
    from llmq.formats.compressed_tensors import Schemes
    from llmq.system.progress import Progress

__all__ = ["Comparison", "TensorError", "compare"]

_BLOCK_ELEMENTS: Final = 4 << 20
_FLOATS: Final = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor.

    Parameters
    ----------
    name : str
        In the source.
    bits : int or None
        Width of its codes; None for a tensor that is stored as floats.
    squared_error, squares, squared_output, product : float
        Sums over all elements of (w - v)^2, w^2, v^2 and w v, for source w and output v.
    max_error : float
        Largest |w - v|.
    """

    name: str
    bits: int | None
    squared_error: float
    squares: float
    squared_output: float
    product: float
    max_error: float

    @property
    def nmse(self) -> float:
        """Sum of squared error over sum of squares."""
        return _ratio(self.squared_error, self.squares)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels, -10 log10(nmse)."""
        return _decibels(self.nmse)

    @property
    def cosine(self) -> float:
        """Cosine between source and output as vectors; 1 where both are zero."""
        norms = sqrt(self.squares) * sqrt(self.squared_output)
        return self.product / norms if norms else float(self.squares == self.squared_output)


@dataclass(frozen=True)
class Comparison:
    """The errors of all tensors, in the order of the source."""

    tensors: tuple[TensorError, ...]

    @property
    def nmse(self) -> float:
        """Over the quantized tensors together."""
        quantized = [t for t in self.tensors if t.bits is not None]
        return _ratio(sum(t.squared_error for t in quantized), sum(t.squares for t in quantized))

    @property
    def sqnr_db(self) -> float:
        """Over the quantized tensors together."""
        return _decibels(self.nmse)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq compare --json` prints, without its schema number."""
        keys = ("name", "bits", "nmse", "sqnr_db", "cosine", "max_error")
        tensors = [{key: getattr(t, key) for key in keys} for t in self.tensors]
        return {"nmse": self.nmse, "sqnr_db": self.sqnr_db, "tensors": tensors}


def compare(source: str | Path, output: str | Path, *, progress: Progress | None = None) -> Comparison:
    """Compare a checkpoint with one made from it; both are read in blocks of rows.

    Parameters
    ----------
    source, output : str or Path
        The original and the quantized checkpoint.
    progress : Progress, optional
        Told of the bytes of the source that are done.

    Raises
    ------
    InputError
        A tensor of the source is missing in the output, or has another shape there.
    """
    progress = progress or NullProgress()
    with open_source(source) as original, open_source(output) as made:
        mapped, schemes = MappedCheckpoint(made), read_schemes(made.config)
        infos = [info for info in original.tensors.values() if info.dtype in _FLOATS and info.nbytes]
        progress.start("comparing", sum(info.nbytes for info in infos))
        errors = []
        for info in infos:
            found = _packed(info, mapped, schemes)
            blocks = _dense_blocks(info, made) if found is None else _packed_blocks(found)
            errors.append(_error(info, original, found.spec.bits if found else None, blocks))
            progress.advance(info.nbytes)
        progress.finish()
    return Comparison(tuple(errors))


def _packed(info: TensorInfo, mapped: MappedCheckpoint, schemes: Schemes | None) -> QuantizedTensor | None:
    module = info.name.removesuffix(".weight")
    tensors = mapped.source.tensors
    if schemes is None or f"{module}.weight_packed" not in tensors:
        return None
    arrays = {s: mapped.tensor(f"{module}.{s}") for s in SUFFIXES if f"{module}.{s}" in tensors}
    found = decode(arrays, schemes.scheme(module), module)
    _check_shape(info, found.shape)
    return found


def _check_shape(info: TensorInfo, shape: tuple[int, ...]) -> None:
    if shape != info.shape:
        raise InputError("shapes differ", tensor=info.name, expected=list(info.shape), found=list(shape))


def _packed_blocks(q: QuantizedTensor) -> Iterator[np.ndarray]:
    step = _rows(q.shape)
    for start in range(0, q.shape[0], step):
        rows = slice(start, start + step)
        zero_point = None if q.zero_point is None else q.zero_point[rows]
        packed, scale = q.packed[rows], q.scale[rows]
        yield QuantizedTensor(q.spec, (packed.shape[0], q.shape[1]), packed, scale, zero_point).dequantize()


def _dense_blocks(info: TensorInfo, made: FolderSource) -> Iterator[np.ndarray]:
    found = made.tensors.get(info.name)
    if found is None:
        raise InputError("missing in the output", file=made.label, tensor=info.name)
    _check_shape(info, found.shape)
    yield from _read_blocks(found, made)


def _read_blocks(info: TensorInfo, source: FolderSource) -> Iterator[np.ndarray]:
    dtype = NUMPY_DTYPES[info.dtype]
    rows = info.shape[0] if info.shape else 1
    row_bytes = info.nbytes // rows
    step = _rows(info.shape)
    for start in range(0, rows, step):
        raw = np.empty(min(step, rows - start) * row_bytes, np.uint8)
        source.read_into(info, start * row_bytes, raw.data)
        yield raw.view(dtype).astype(np.float32).reshape(min(step, rows - start), -1)


def _rows(shape: tuple[int, ...]) -> int:
    elements = int(np.prod(shape[1:], dtype=np.int64))
    return max(1, _BLOCK_ELEMENTS // max(1, elements))


def _error(info: TensorInfo, source: FolderSource, bits: int | None, blocks: Iterator[np.ndarray]) -> TensorError:
    sums, largest = np.zeros(4), 0.0
    for one, other in zip(_read_blocks(info, source), blocks, strict=True):
        weight, value = one.ravel(), other.ravel()
        difference = weight - value
        pairs = ((difference, difference), (weight, weight), (value, value), (weight, value))
        # Sums of a block in float64: a large tensor has more elements than float32 has precision.
        sums += [float(np.einsum("i,i->", a, b, dtype=np.float64, casting="safe")) for a, b in pairs]
        largest = max(largest, float(np.abs(difference).max()))
    squared_error, squares, squared_output, product = sums.tolist()
    return TensorError(info.name, bits, squared_error, squares, squared_output, product, largest)


def _ratio(error: float, squares: float) -> float:
    return error / squares if squares else (inf if error else 0.0)


def _decibels(nmse: float) -> float:
    return -10 * log10(nmse) if nmse else inf
