"""Reading an `.onnx` file that strangers wrote: its structure in memory, its large initializers left where they are.

Three kinds of fields are walked, ``ModelProto.graph`` (7), ``GraphProto.initializer`` (5) and ``TensorProto.raw_data``
(9); everything else is handed to protobuf as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from llmq.checkpoint.guess import guess_content
from llmq.checkpoint.safe_open import Signature, allowed_roots, open_inside
from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LARGE", "LARGEST_MESSAGE", "GraphFile", "Region", "read_graph"]

LARGE: Final = 1024
"""Bytes from which on the data of a tensor stands outside the structure, here and in what is written."""

LARGEST_MESSAGE: Final = (1 << 31) - 1
"""Bytes that protobuf can hold."""

_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Region(NamedTuple):
    """Bytes of a file: where they begin and how many they are."""

    offset: int
    length: int


@dataclass(frozen=True, eq=False)
class GraphFile:
    """A model without the data of its large initializers.

    Parameters
    ----------
    path : Path
    proto : onnx.ModelProto
        What was read; initializers listed in `regions` lack their `raw_data`.
    regions : dict
        Where in the file that data stands, by name of the initializer.
    signature : Signature
        Of the file when it was read.
    """

    path: Path
    proto: onnx.ModelProto
    regions: dict[str, Region]
    signature: Signature


class _Field(NamedTuple):
    """A field of a message whose contents are read next: what stands before them, and their length in bytes."""

    number: int
    wire: int
    head: bytes
    length: int


def read_graph(path: Path) -> GraphFile:
    """Read a model's structure.

    Raises
    ------
    InputError
        Missing, unreadable, cut short, no ONNX model, or larger than protobuf can hold even without initializers.
    """
    fd, signature = open_inside(path, allowed_roots(path.parent))
    with os.fdopen(fd, "rb") as file:
        try:
            start = file.read(64)
            file.seek(0)
            walk = _Walk(file, path.name)
            structure = walk.message(signature.size, (_GRAPH, _INITIALIZER))
            proto = onnx.ModelProto.FromString(bytes(structure))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path.name) from error
        except (_BrokenError, DecodeError):
            raise _unlike(path, start) from None
    if not proto.ir_version or not proto.HasField("graph"):
        raise _unlike(path, start)
    return GraphFile(path, proto, walk.regions, signature)


class _BrokenError(Exception):
    """Bytes that are no message."""


def _unlike(path: Path, start: bytes) -> InputError:
    guess = guess_content(start)
    if guess is not None:
        return InputError(f"not an ONNX model: {guess.what}", file=path.name, hint="download or export it again")
    return InputError("not an ONNX model, or cut short", file=path.name, hint="download or export it again")


class _Walk:
    """Copies the fields of a model but for the data of large initializers, whose places it notes."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.regions: dict[str, Region] = {}
        self._file = file
        self._name = name

    def message(self, end: int, path: tuple[int, ...]) -> bytearray:
        """Copy a message that ends at `end`; `path` are the numbers of the fields that lead to a tensor."""
        if not path:
            return self._tensor(end)
        out = bytearray()
        for field in self._fields(end):
            if field.number == path[0] and field.wire == _LENGTH:
                body = self.message(self._file.tell() + field.length, path[1:])
                out += field.head[: _length_of_varint(field.head)] + _varint(len(body)) + body
            else:
                self._copy(field, out)
        return out

    def _tensor(self, end: int) -> bytearray:
        out = bytearray()
        name, region = b"", None
        for field in self._fields(end):
            if field.number == _RAW_DATA and field.wire == _LENGTH and field.length >= LARGE:
                region = Region(self._file.tell(), field.length)
                self._file.seek(field.length, os.SEEK_CUR)
                continue
            self._copy(field, out)
            if field.number == _NAME:
                name = bytes(out[len(out) - field.length :]) if field.length else b""
        if region is not None:
            text = name.decode(errors="replace")
            if text in self.regions:
                raise InputError("two initializers of one name", file=self._name, tensor=text)
            self.regions[text] = region
        return out

    def _fields(self, end: int) -> Iterator[_Field]:
        while self._file.tell() < end:
            head = self._read_varint()
            tag, length = _value(head), 0
            wire = tag & 7
            if wire == _LENGTH:
                size = self._read_varint()
                head, length = head + size, _value(size)
            elif wire == _VARINT:
                head += self._read_varint()
            elif wire in (_FIXED64, _FIXED32):
                length = 8 if wire == _FIXED64 else 4
            else:
                raise _BrokenError
            if tag >> 3 == 0 or length > end - self._file.tell():
                raise _BrokenError
            yield _Field(tag >> 3, wire, head, length)

    def _copy(self, field: _Field, out: bytearray) -> None:
        if len(out) + field.length > LARGEST_MESSAGE:
            raise InputError(
                "its structure alone is larger than protobuf can hold",
                file=self._name,
                expected="at most 2 GiB besides the data of initializers",
                hint="export it with external data",
            )
        contents = self._file.read(field.length)
        if len(contents) != field.length:
            raise _BrokenError
        out += field.head + contents

    def _read_varint(self) -> bytes:
        found = bytearray()
        while len(found) < 10:
            byte = self._file.read(1)
            if not byte:
                break
            found += byte
            if byte[0] < 0x80:
                return bytes(found)
        raise _BrokenError


def _value(varint: bytes) -> int:
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(varint))


def _length_of_varint(data: bytes) -> int:
    """Bytes of the varint that `data` begins with."""
    return next(i for i, byte in enumerate(data, 1) if byte < 0x80)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
