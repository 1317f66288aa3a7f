"""Carry a plan out: read weights in strips of rows, quantize them, write what they become; copy everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from onnx import numpy_helper

from llmq.evaluate.sums import normalized
from llmq.methods import METHODS
from llmq.onnx.element_types import FLOATS
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx

    from llmq.onnx.initializers import StoredTensor, TensorFiles
    from llmq.onnx.output_files import DataFile
    from llmq.onnx.quantize_forms import Layout, Write

__all__ = ["STRIP_ELEMENTS", "Destination", "SquaredError", "copy_tensor", "nonfinite_weights", "quantize_weight"]

STRIP_ELEMENTS: Final = 1 << 21
"""Of a weight in memory at a time, unless eight rows are more."""

_BLOCK: Final = 16 << 20
_ROWS: Final = 8
"""Strips are whole multiples of so many rows: their codes fill whole bytes."""


@dataclass(eq=False)
class Destination:
    """Where the data of one output tensor goes: a place in the data file or, where it is small, into the structure.

    Parameters
    ----------
    tensor : onnx.TensorProto
        Of the output's structure.
    nbytes : int
    offset : int or None
        In the data file; None for a small one.
    """

    tensor: onnx.TensorProto
    nbytes: int
    offset: int | None
    buffer: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = bytearray(self.nbytes if self.offset is None else 0)

    def write(self, file: DataFile, start: int, data: np.ndarray) -> None:
        """Put contiguous uint8 data at a place of the tensor."""
        if self.offset is None:
            self.buffer[start : start + data.size] = data.tobytes()
        else:
            file.write(self.offset + start, data)

    def finish(self) -> None:
        """Hand a small tensor's data to the structure."""
        if self.offset is None:
            self.tensor.raw_data = bytes(self.buffer)


class SquaredError(NamedTuple):
    """Squares of what a weight changed by, and of its values, both summed."""

    error: float
    squares: float

    @property
    def nmse(self) -> float:
        """The first over the second."""
        return normalized(self.error, self.squares)


def copy_tensor(tensor: StoredTensor, source: TensorFiles, to: Destination, file: DataFile) -> None:
    """Copy a tensor's bytes, a block at a time."""
    block = np.empty(min(_BLOCK, tensor.nbytes), np.uint8)
    for start in range(0, tensor.nbytes, _BLOCK):
        piece = block[: min(_BLOCK, tensor.nbytes - start)]
        source.read(tensor, start, piece)
        to.write(file, start, piece)
    to.finish()


def quantize_weight(
    weight: tuple[StoredTensor, Layout], method: str, source: TensorFiles, emit: Callable[[Write], None]
) -> SquaredError:
    """Quantize a weight in one form, strip by strip.

    Parameters
    ----------
    weight : (StoredTensor, Layout)
    method : str
        A key of `METHODS` that needs no data.
    source : TensorFiles
    emit : callable
        Takes what has to be written.

    Returns
    -------
    SquaredError

    Raises
    ------
    FloatingPointError
        It holds NaN or infinity.
    """
    tensor, layout = weight
    error = squares = 0.0
    for start, rows in _strips(tensor, layout, source):
        quantized = METHODS[method].quantize(rows, layout.resolved)
        for write in layout.writes(start, quantized):
            emit(write)
        before, after = rows.astype(np.float32, copy=False), quantized.dequantize()
        after -= before
        error += _squares(after[:, : layout.columns])
        squares += _squares(before)
    return SquaredError(error, squares)


def _squares(x: np.ndarray) -> float:
    """Sum of the squares of float32 (rows, columns): rows in single precision, their sums in double."""
    return float(np.einsum("ij,ij->i", x, x).sum(dtype=np.float64))


def nonfinite_weights(tensor: StoredTensor, layout: Layout, source: TensorFiles) -> tuple[int, int]:
    """Numbers of NaN and of infinities in a weight as it would be quantized."""
    found = np.zeros(2, np.int64)
    for _, rows in _strips(tensor, layout, source):
        found += np.array(count_nonfinite(rows), np.int64)
    return int(found[0]), int(found[1])


def _strips(tensor: StoredTensor, layout: Layout, source: TensorFiles) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows (n, padded) of each strip, in the type of the activations, filled up with zeros."""
    step = max(_ROWS, STRIP_ELEMENTS // layout.padded // _ROWS * _ROWS)
    held = numpy_helper.to_array(tensor.proto) if tensor.location is None else None
    for start in range(0, layout.rows, step):
        stop = min(start + step, layout.rows)
        if held is not None:
            rows = (held.T if layout.form.transposed else held.reshape(layout.rows, -1))[start:stop]
        elif layout.form.transposed:
            rows = _read_columns(tensor, source, start, stop).T
        else:
            rows = _read_rows(tensor, source, start, stop)
        padded = np.zeros((stop - start, layout.padded), FLOATS[layout.form.data_type])
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found
            padded[:, : layout.columns] = rows
        yield start, padded


def _read_rows(tensor: StoredTensor, source: TensorFiles, start: int, stop: int) -> np.ndarray:
    """Read some entries of the first axis, as a matrix."""
    dtype = FLOATS[tensor.data_type]
    out = np.empty((stop - start, tensor.elements // tensor.shape[0]), dtype)
    source.read(tensor, start * out.shape[1] * dtype.itemsize, out.view(np.uint8).reshape(-1))
    return out


def _read_columns(tensor: StoredTensor, source: TensorFiles, start: int, stop: int) -> np.ndarray:
    """Read some columns of a matrix."""
    dtype = FLOATS[tensor.data_type]
    rows, columns = tensor.shape
    if (start, stop) == (0, columns):
        return _read_rows(tensor, source, 0, rows)
    out = np.empty((rows, stop - start), dtype)
    for row in range(rows):
        source.read(tensor, (row * columns + start) * dtype.itemsize, out[row].view(np.uint8))
    return out
