"""A checkpoint on another machine, read by ranges of bytes: nothing of its weights comes to a disk of this one."""

from __future__ import annotations

import hashlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from llmq.checkpoint.folder_files import read_folder
from llmq.checkpoint.header import Header, header_length, parse_header
from llmq.checkpoint.index import shard_names, tensors_of
from llmq.checkpoint.safe_open import allowed_roots
from llmq.errors import InputError
from llmq.system.pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from llmq.checkpoint.header import TensorInfo

__all__ = ["ChecksumError", "RemoteFiles", "RemoteSource"]

_log = logging.getLogger("llmq")

_STREAMS: Final = 8
"""Requests in flight: one connection seldom fills a line."""

_PART: Final = 1 << 20
"""Fewest bytes worth a request of their own."""

_FIRST: Final = 64 << 10
"""Bytes asked for to begin with: most headers are shorter."""


class ChecksumError(InputError):
    """The bytes of a file are not those that its server has a checksum of: the same run would fail again."""


class RemoteFiles(Protocol):
    """The files of a folder on a server."""

    folder: Path
    """On this machine, with everything but the weights."""
    sizes: Mapping[str, int]
    """Bytes of the files with weights, by name."""
    sha256: Mapping[str, str]
    """Checksums, of those files of which the server tells them."""
    identity: dict[str, Any]
    """What tells this version of the folder from any other."""

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of a file. Safe to call from several threads. Raises LlmqError."""
        ...

    def check_unchanged(self) -> None:
        """Raise InputError if a file is known to be another than it was."""
        ...

    def close(self) -> None:
        """Give back what is held; a read that goes on meanwhile fails."""
        ...


class RemoteSource:
    """A checkpoint on a server. Every header is read and checked at once.

    Parameters
    ----------
    files : RemoteFiles
        Closed with this source, and if it cannot be opened.
    label : str
        What the user called it.

    Raises
    ------
    InputError
        Anything about the files that is not sound.
    UnsupportedError
        Weights in formats that llmq does not read.
    NetworkError
        The server could not be reached, or refused.
    """

    in_file_order = True

    def __init__(self, files: RemoteFiles, *, label: str) -> None:
        self.folder = files.folder
        self.label = label
        self._files = files
        self._checksums = {name: _Checksum(digest) for name, digest in files.sha256.items()}
        self._streams = DaemonPool(_STREAMS, "llmq-fetch")
        try:
            beside = read_folder(self.folder, allowed_roots(self.folder))
            self.config, self.other_files = beside.config, beside.others
            self._config_digest = beside.config_digest
            names = sorted({*files.sizes, *(entry.name for entry in self.folder.iterdir())})
            shards = shard_names(self.folder, names, beside.index)
            headers = [self._streams.submit(self._header, name) for name in shards]
            self._headers = {name: header.result() for name, header in zip(shards, headers, strict=True)}
            self.tensors: Mapping[str, TensorInfo] = tensors_of(self._headers, beside.index, self.config)
        except BaseException:
            self.close()
            raise

    def _header(self, name: str) -> Header:
        size = self._files.sizes[name]
        start = self._bytes(name, 0, min(size, _FIRST))
        length = header_length(start[:512], file=name, file_size=size)
        if 8 + length > len(start):
            start += self._bytes(name, len(start), 8 + length - len(start))
        if name in self._checksums:
            self._checksums[name].add(0, memoryview(start)[: 8 + length])
        return parse_header(start[8 : 8 + length], file=name, file_size=size)

    def _bytes(self, name: str, start: int, count: int) -> bytes:
        buffer = bytearray(count)
        if count:
            self._files.read(name, start, memoryview(buffer))
        return bytes(buffer)

    def identity(self) -> dict[str, Any]:
        """See `Source.identity`."""
        sizes, sums = self._files.sizes, self._files.sha256
        files = {
            name: {"size": sizes[name], "sha256": sums.get(name), "header": header.digest}
            for name, header in self._headers.items()
        }
        return {"files": files, "config": self._config_digest, **self._files.identity}

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """See `Source.read_into`. Long reads are cut into parts that are asked for side by side.

        Raises
        ------
        NetworkError
            The server cannot be reached any more, or answers with something else.
        """
        view = buffer.cast("B")
        if start < 0 or start + len(view) > info.nbytes:
            raise ValueError(f"bytes {start}..{start + len(view)} of a tensor of {info.nbytes}")
        first = info.offset + start
        step = max(_PART, -(-len(view) // _STREAMS))
        parts = [
            self._streams.submit(self._files.read, info.file, first + at, view[at : at + step])
            for at in range(0, len(view), step)
        ]
        try:
            for part in parts:
                part.result()
        except BaseException:
            for part in parts:
                part.cancel()
            raise
        checksum = self._checksums.get(info.file)
        if checksum is not None:
            checksum.add(first, view)

    def check_unchanged(self) -> None:
        """See `Source.check_unchanged`; compare the checksums of those files whose bytes were all read in order.

        Raises
        ------
        ChecksumError
            A file's bytes are not what the server says.
        """
        self._files.check_unchanged()
        known = [name for name in self._headers if name in self._checksums]
        whole = [name for name in known if self._checksums[name].length == self._files.sizes[name]]
        for name in whole:
            expected, found = self._checksums[name].expected, self._checksums[name].found
            if found != expected:
                hint = "run again; if that does not help, what the server has is corrupt"
                raise ChecksumError("wrong bytes", file=name, expected=f"SHA-256 {expected}", found=found, hint=hint)
        if len(whole) < len(known):
            _log.info(
                "hint: checksums of %d of %d files match; the others were not read in order, or not by this run",
                len(whole), len(known),
            )  # fmt: skip

    def close(self) -> None:
        """Give connections and threads back, without waiting for them."""
        self._streams.close()
        self._files.close()

    def __enter__(self) -> RemoteSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Checksum:
    """SHA-256 of a file as far as it was read from the beginning without a gap."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.length = 0
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()

    @property
    def found(self) -> str:
        """Of what was read so far."""
        return self._hash.hexdigest()

    def add(self, start: int, data: memoryview) -> None:
        """Take what is new of the bytes from `start` on, if it follows what was taken before."""
        with self._lock:
            if start <= self.length < start + len(data):
                self._hash.update(data[self.length - start :])
                self.length = start + len(data)
