"""Tensors of a model where they are stored: in its structure, in its file, or in files beside it.

Their data is read a piece at a time, by `preadv` from regular files inside the model's folder; nothing that a tensor
says of itself is believed before the file's size agrees.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

import onnx

from llmq.checkpoint.safe_open import Signature, allowed_roots, open_inside, signature_of
from llmq.errors import InputError
from llmq.onnx.element_types import element_bits, packed_bytes
from llmq.onnx.graph_file import Region
from llmq.system.files import preadv

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from llmq.onnx.graph_file import GraphFile

__all__ = ["StoredTensor", "TensorFiles"]

_TYPE: Final = onnx.TensorProto
_KEYS: Final = frozenset({"location", "offset", "length", "checksum", "basepath"})
_LONGEST_NAME: Final = 4096


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor and where its data stands.

    Parameters
    ----------
    name : str
    data_type : int
        Of `onnx.TensorProto.DataType`.
    shape : tuple of int
    location : str or None
        The file, relative to the model's folder; None where `proto` holds the data.
    offset : int
        In bytes.
    nbytes : int
        Of the data.
    proto : onnx.TensorProto
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    location: str | None
    offset: int
    nbytes: int
    proto: onnx.TensorProto

    @property
    def elements(self) -> int:
        """How many."""
        return prod(self.shape)


class TensorFiles:
    """Opens what the tensors of a model are stored in; a context manager.

    Parameters
    ----------
    file : GraphFile
    """

    def __init__(self, file: GraphFile) -> None:
        self._file = file
        self._roots = allowed_roots(file.path.parent)
        self._open: dict[str, tuple[int, Signature]] = {}

    def stored(self, tensor: onnx.TensorProto, name: str, region: Region | None = None) -> StoredTensor:
        """Find out where a tensor's data stands, and that all of it is there.

        Parameters
        ----------
        tensor : onnx.TensorProto
        name : str
            For messages.
        region : Region, optional
            Where the model's file has the data that was left out of `tensor`.

        Raises
        ------
        InputError
            A place outside the model's folder, a missing or short file, or sizes that do not fit.
        """
        shape, nbytes = tuple(tensor.dims), self._size_of(tensor, name)
        location = None
        if tensor.data_location == _TYPE.EXTERNAL:
            location, region = self._external(tensor, name)
        elif region is not None:
            location = self._file.path.name
        if location is None or region is None:
            return StoredTensor(name, tensor.data_type, shape, None, 0, nbytes, tensor)
        length = nbytes if region.length < 0 else region.length
        if length != nbytes:
            raise self._wrong("its data has another size than its shape", name, nbytes, length)
        _, signature = self._opened(location, name)
        if region.offset + nbytes > signature.size:
            raise self._wrong(
                f"its data ends behind the end of {location}", name, region.offset + nbytes, signature.size
            )
        return StoredTensor(name, tensor.data_type, shape, location, region.offset, nbytes, tensor)

    @property
    def paths(self) -> list[Path]:
        """The files that have been opened, the model's own first."""
        return [self._file.path, *(self._file.path.parent / name for name in self._open)]

    def read(self, tensor: StoredTensor, start: int, out: np.ndarray) -> None:
        """Fill uint8 `out` with the bytes from `start` on of a tensor that stands in a file. Raises InputError."""
        assert tensor.location is not None
        fd, _ = self._opened(tensor.location, tensor.name)
        try:
            count = preadv(fd, out.data, tensor.offset + start)
        except OSError as error:
            raise self._wrong(f"cannot be read: {error.strerror}", tensor.name) from error
        if count != out.size:
            raise self._wrong("its file became shorter while it was read", tensor.name)

    def check_unchanged(self) -> None:
        """Raise InputError if a file changed since it was opened."""
        own = self._file.path.stat()
        changed = signature_of(own) != self._file.signature
        changed = changed or any(signature_of(os.fstat(fd)) != before for fd, before in self._open.values())
        if changed:
            raise InputError("changed while it was read", file=self._file.path.name, hint="try again")

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd, _ in self._open.values():
            os.close(fd)
        self._open.clear()

    def _opened(self, location: str, name: str) -> tuple[int, Signature]:
        if location not in self._open:
            try:
                self._open[location] = open_inside(self._file.path.parent / location, self._roots)
            except InputError as error:
                raise InputError(
                    f"its data: {error}", file=self._file.path.name, tensor=name, hint=error.hint
                ) from None
        return self._open[location]

    def _size_of(self, tensor: onnx.TensorProto, name: str) -> int:
        bits = element_bits(tensor.data_type)
        if any(n < 0 for n in tensor.dims):
            raise self._wrong("its shape is negative", name, found=list(tensor.dims))
        if bits is None and tensor.data_type != _TYPE.STRING:
            raise self._wrong("unknown data type", name, found=tensor.data_type)
        return packed_bytes(prod(map(int, tensor.dims)), bits or 0)

    def _external(self, tensor: onnx.TensorProto, name: str) -> tuple[str, Region]:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        if len(fields) != len(tensor.external_data) or not fields.keys() <= _KEYS or "location" not in fields:
            found = ", ".join(entry.key for entry in tensor.external_data)[:80]
            raise self._wrong("external data is not described as ONNX does", name, "location, offset, length", found)
        if tensor.data_type == _TYPE.STRING:
            raise self._wrong("text cannot be external data", name)
        numbers = {}
        for key, default in (("offset", "0"), ("length", "-1")):
            value = fields.get(key, default)
            if value != default and not re.fullmatch(r"[0-9]{1,18}", value):
                raise self._wrong(f"{key} of its external data is no size", name, found=value[:40])
            numbers[key] = int(value)
        location = fields["location"]
        if not _is_beside(location):
            raise InputError(
                f"its external data lies outside the model's folder: {location[:200]}",
                file=self._file.path.name,
                tensor=name,
                hint="put the data file beside the model",
            )
        return str(PurePosixPath(location)), Region(numbers["offset"], numbers["length"])

    def _wrong(self, what: str, name: str, expected: Any = None, found: Any = None) -> InputError:
        return InputError(what, file=self._file.path.name, tensor=name, expected=expected, found=found)


def _is_beside(location: str) -> bool:
    """Whether a location names something below the folder that it is relative to, on every system."""
    windows = PureWindowsPath(location)
    parts = re.split(r"[/\\]", location)
    return (
        0 < len(location) <= _LONGEST_NAME
        and "\0" not in location
        and "\\" not in location
        and not windows.drive
        and not windows.root
        and ".." not in parts
        and any(part not in ("", ".") for part in parts)
    )
