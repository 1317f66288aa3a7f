"""Tensors outside the graph: in the checkpoint's own safetensors files, and in one file beside the graph.

A graph's initializer may be a stretch of bytes of any file in the graph's folder. Packed codes and dense weights are
used where they stand; what the checkpoint does not hold as runtimes want it goes into a file of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
from onnx import TensorProto

from llmq.errors import UnsupportedError
from llmq.onnx.element_types import STORED_FLOATS
from llmq.onnx.output_files import DataFile

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.checkpoint.header import TensorInfo
    from llmq.system.progress import Progress

__all__ = ["ExternalTensor", "OwnData", "checkpoint_tensor", "point_to"]

_ALIGNMENT: Final = 64

Make = Callable[[], Iterable[np.ndarray]]
"""Makes the values of a tensor, in parts that follow each other."""


@dataclass(frozen=True)
class ExternalTensor:
    """Where the bytes of a tensor stand.

    Parameters
    ----------
    name : str
        Of the initializer.
    dtype : int
        Element type of ONNX.
    shape : tuple of int
    file : str
        In the graph's folder.
    offset, nbytes : int
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    def part(self, start: int, stop: int, rows: int) -> ExternalTensor:
        """Take rows `start` to `stop`, `rows` at a time: of shape `(blocks, rows, ...)`."""
        step = self.nbytes // self.shape[0]
        return replace(
            self,
            name=f"{self.name}.{start}",
            shape=((stop - start) // rows, rows, *self.shape[1:]),
            offset=self.offset + start * step,
            nbytes=(stop - start) * step,
        )

    def proto(self) -> TensorProto:
        """Return the initializer."""
        tensor = TensorProto(name=self.name, data_type=self.dtype, dims=self.shape)
        point_to(tensor, self.file, self.offset, self.nbytes)
        return tensor


def point_to(tensor: TensorProto, file: str, offset: int, nbytes: int) -> None:
    """Let an initializer have its data in a file of the graph's folder, from `offset` on, and nowhere else."""
    for name in ("raw_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def checkpoint_tensor(
    info: TensorInfo, *, dtype: int | None = None, shape: tuple[int, ...] | None = None
) -> ExternalTensor:
    """Use a tensor of the checkpoint where it stands.

    Parameters
    ----------
    info : TensorInfo
    dtype : int, optional
        Element type of ONNX that its bytes are declared as; by default its own, which must be a float.
    shape : tuple of int, optional
        Of as many bytes.

    Raises
    ------
    UnsupportedError
        A dtype that graphs cannot have.
    """
    if dtype is None and info.dtype not in STORED_FLOATS:
        raise UnsupportedError(f"dtype {info.dtype} cannot be exported", file=info.file, tensor=info.name)
    chosen = STORED_FLOATS[info.dtype] if dtype is None else dtype
    return ExternalTensor(
        info.name, chosen, info.shape if shape is None else shape, info.file, info.offset, info.nbytes
    )


@dataclass(frozen=True)
class _Entry:
    tensor: ExternalTensor
    make: Make


class OwnData:
    """What the checkpoint does not hold: planned first, so that its size is known, then written in one go.

    Parameters
    ----------
    file : str
        Its name in the graph's folder.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.nbytes = 0
        """Of everything planned so far."""
        self._entries: list[_Entry] = []

    def add(self, name: str, dtype: type[np.float32 | np.uint8], shape: tuple[int, ...], make: Make) -> ExternalTensor:
        """Plan a tensor whose values `make` gives when it is written.

        Parameters
        ----------
        name : str
            Of the initializer.
        dtype : numpy.float32 or numpy.uint8
        shape : tuple of int
        make : callable
            Returns arrays of that dtype, which together fill the shape.
        """
        kind = TensorProto.FLOAT if dtype is np.float32 else TensorProto.UINT8
        offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        tensor = ExternalTensor(name, kind, shape, self.file, offset, prod(shape) * np.dtype(dtype).itemsize)
        self._entries.append(_Entry(tensor, make))
        self.nbytes = offset + tensor.nbytes
        return tensor

    def write(self, path: Path, progress: Progress) -> None:
        """Write all tensors to a new file and return once it is on the disk. Raises OSError."""
        with DataFile(path, self.nbytes) as file:
            progress.start(f"writing {self.file}", self.nbytes)
            for entry in self._entries:
                at = entry.tensor.offset
                for part in entry.make():
                    data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                    file.write(at, data)
                    at += data.size
                    progress.advance(data.size)
                assert at == entry.tensor.offset + entry.tensor.nbytes, entry.tensor.name
        progress.finish()
