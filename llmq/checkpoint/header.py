"""The header of a safetensors file, parsed strictly.

A file is ``u64 n`` (little-endian), ``n`` bytes of JSON, then data. Every tensor's ``data_offsets`` count from the
start of the data; together they cover it without holes or overlaps. What the safetensors library refuses is refused
here too, and more: see `parse_header`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.dtypes import bytes_per_element
from llmq.checkpoint.guess import guess_content, size_text
from llmq.errors import InputError
from llmq.system.files import preadv

__all__ = ["MAX_HEADER", "Header", "TensorInfo", "header_length", "parse_header", "read_header"]

MAX_HEADER: Final = 100_000_000
"""Longest header, in bytes; the same limit as the safetensors library's."""

_ALWAYS_ALLOWED: Final = 16 << 20
_LARGEST: Final = (1 << 63) - 1
_MAX_NAME: Final = 4096
_MAX_RANK: Final = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor stands.

    Parameters
    ----------
    name : str
        Any text: escape it before printing, never use it as a path.
    dtype : str
        Code of safetensors, such as ``"BF16"``.
    shape : tuple of int
    file : str
        Name of the file that holds it.
    offset : int
        Of its first byte, from the start of the file.
    nbytes : int
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A parsed header.

    Parameters
    ----------
    tensors : tuple of TensorInfo
        In the order of their bytes.
    metadata : dict of str to str
        ``__metadata__``.
    data_start : int
        Where the data begins, from the start of the file.
    digest : str
        SHA-256 of the header's bytes.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data_start: int
    digest: str


def read_header(fd: int, file: str) -> Header:
    """Read and parse the header of an open regular file. Raises as `parse_header` does."""
    size = os.fstat(fd).st_size
    length = header_length(_read(fd, 0, min(size, 512), file), file=file, file_size=size)
    return parse_header(_read(fd, 8, length, file), file=file, file_size=size)


def header_length(start: bytes, *, file: str, file_size: int) -> int:
    """Bytes of the JSON of a header, by the first 512 bytes of its file, or all of a shorter one.

    Raises
    ------
    InputError
        Something else than a safetensors file, or one cut off in its header.
    """
    size = file_size
    if size < 8:
        what = "empty file" if size == 0 else f"not a safetensors file: only {size} bytes"
        raise InputError(what, file=file, hint="download it again")
    length = int.from_bytes(start[:8], "little")
    guess = guess_content(start)
    if guess:
        raise InputError(f"not a safetensors file: {guess.what}", file=file, hint=guess.hint)
    if length > MAX_HEADER:
        raise InputError("not a safetensors file: its header would be too long", file=file, found=f"{length} bytes")
    if length > size - 8:
        found = f"{size_text(size, 8 + length)} of its header alone present"
        raise InputError(f"truncated: {found}", file=file, hint="download it again")
    if length > max(size // 10, _ALWAYS_ALLOWED):
        raise InputError("the header takes more than a tenth of the file", file=file, found=f"{length} of {size} bytes")
    return length


def parse_header(data: bytes, *, file: str, file_size: int) -> Header:
    """Parse the JSON of a header against the size of its file.

    Parameters
    ----------
    data : bytes
        The JSON, without the eight bytes before it.
    file : str
        Named in errors and in every `TensorInfo`.
    file_size : int
        In bytes.

    Raises
    ------
    InputError
        Not strict JSON; keys or fields that are duplicate, missing, unknown or of a wrong type; names with NUL or
        longer than 4 kB; an unknown dtype; sizes that overflow or differ from the offsets; holes, overlaps, trailing
        bytes; a file shorter than its header says.
    UnsupportedError
        Dtypes narrower than a byte.
    """
    if not data.startswith(b"{"):
        raise InputError("the header is not a JSON object", file=file)
    entries = json_strict.loads(data, file)
    metadata = _metadata(entries.pop("__metadata__", {}), file)
    start = 8 + len(data)
    tensors = [_tensor(name, entry, file, start) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_cover(tensors, file, start, file_size)
    return Header(tuple(tensors), metadata, start, hashlib.sha256(data).hexdigest())


def _read(fd: int, offset: int, length: int, file: str) -> bytes:
    buffer = bytearray(length)
    try:
        count = preadv(fd, memoryview(buffer), offset)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    return bytes(buffer[:count])


def _metadata(value: Any, file: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InputError("__metadata__ must map strings to strings", file=file)
    return value


def _tensor(name: str, entry: Any, file: str, start: int) -> TensorInfo:
    if "\0" in name or len(name.encode("utf-8")) > _MAX_NAME:
        raise InputError("a tensor name is longer than 4 kB or holds NUL", file=file, found=f"{name[:60]!r}...")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError("must have dtype, shape and data_offsets, nothing else", file=file, tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise InputError("dtype must be a string", file=file, tensor=name)
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise InputError("shape must be a list of whole numbers", file=file, tensor=name, found=str(shape)[:80])
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError("data_offsets must be two rising numbers", file=file, tensor=name, found=str(offsets)[:80])
    nbytes = bytes_per_element(dtype, file=file, tensor=name)
    for size in shape:
        nbytes *= size
        if nbytes > _LARGEST:
            raise InputError("shape is too large", file=file, tensor=name, found=str(shape)[:80])
    if nbytes != offsets[1] - offsets[0]:
        raise InputError(
            f"{dtype} {shape} does not fit its data_offsets",
            file=file,
            tensor=name,
            expected=f"{nbytes} bytes",
            found=f"{offsets[1] - offsets[0]} bytes",
        )
    return TensorInfo(name, dtype, tuple(shape), file, start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _check_cover(tensors: list[TensorInfo], file: str, start: int, file_size: int) -> None:
    end = start
    for info in tensors:
        if info.offset != end:
            word = "a hole before it" if info.offset > end else "it overlaps another tensor"
            raise InputError(word, file=file, tensor=info.name, expected=f"offset {end}", found=info.offset)
        end += info.nbytes
    if end > file_size:
        raise InputError(f"truncated: {size_text(file_size, end)} present", file=file, hint="download it again")
    if end < file_size:
        raise InputError(f"{file_size - end} bytes behind the last tensor", file=file, expected=end, found=file_size)
