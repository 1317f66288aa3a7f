"""A checkpoint in a folder of this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.faults import reading, unreadable
from llmq.checkpoint.folder_files import FolderFiles, read_folder
from llmq.checkpoint.header import Header, TensorInfo, read_header
from llmq.checkpoint.index import shard_names, tensors_of
from llmq.checkpoint.safe_open import Signature, allowed_roots, open_inside, signature_of
from llmq.errors import InputError
from llmq.system.files import preadv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = ["FolderSource"]

_KEPT_OPEN: Final = 200  # shards; a process may often open no more than 1,024 files


class FolderSource:
    """A checkpoint in a folder, or a single file of one. Every header is read and checked at once.

    Parameters
    ----------
    folder : Path
        An existing folder.
    label : str
        What the user called it.
    only : str or None
        The one file to read, without configuration or companions; None reads what the folder's index says.
    hub : dict or None
        Repository and commit, where the folder was downloaded from the Hub.

    Raises
    ------
    InputError
        Anything about the files that is not sound.
    UnsupportedError
        Weights in formats that llmq does not read.
    """

    in_file_order = False

    def __init__(self, folder: Path, *, label: str, only: str | None = None, hub: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.label = label
        self._hub = hub
        self._descriptors: dict[str, int] = {}
        self._signatures: dict[str, Signature] = {}
        self._headers: dict[str, Header] = {}
        try:
            with reading(folder):
                self._roots = allowed_roots(folder)
                beside = FolderFiles({}, None, (), None) if only else read_folder(folder, self._roots)
                names = sorted(entry.name for entry in folder.iterdir())
            self.config, self.other_files = beside.config, beside.others
            self._config_digest = beside.config_digest
            for name in [only] if only else shard_names(folder, names, beside.index):
                self._open(name)
            self.tensors: Mapping[str, TensorInfo] = tensors_of(self._headers, beside.index, self.config)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        fd, signature = open_inside(self.folder / name, self._roots)
        self._signatures[name] = signature
        try:
            with reading(name):
                self._headers[name] = read_header(fd, name)
        except BaseException:
            os.close(fd)
            raise
        if len(self._descriptors) < _KEPT_OPEN:
            self._descriptors[name] = fd
        else:
            os.close(fd)

    @property
    def headers(self) -> Mapping[str, Header]:
        """Headers by file."""
        return self._headers

    def identity(self) -> dict[str, Any]:
        """See `Source.identity`. A copy of the files has the same one only where their times were copied too."""
        files = {
            name: {
                "size": self._signatures[name].size,
                "mtime_ns": self._signatures[name].mtime_ns,
                "header": header.digest,
            }
            for name, header in self._headers.items()
        }
        found: dict[str, Any] = {"files": files, "config": self._config_digest}
        return found | ({"hub": self._hub} if self._hub else {})

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """See `Source.read_into`.

        Raises
        ------
        InputError
            The file cannot be read, or is shorter than it was.
        """
        view = buffer.cast("B")
        if start < 0 or start + len(view) > info.nbytes:
            raise ValueError(f"bytes {start}..{start + len(view)} of a tensor of {info.nbytes}")
        try:
            kept = self._descriptors.get(info.file)
            if kept is not None:
                count = preadv(kept, view, info.offset + start)
            else:
                fd = self._reopen(info.file)
                try:
                    count = preadv(fd, view, info.offset + start)
                finally:
                    os.close(fd)
        except OSError as error:
            raise unreadable(error, info.file, tensor=info.name) from error
        if count < len(view):
            raise InputError("the file became shorter while it was read", file=info.file, tensor=info.name)

    def duplicate(self, name: str) -> int:
        """Open a descriptor of its own for one of the files, still unchanged; the caller closes it."""
        kept = self._descriptors.get(name)
        return os.dup(kept) if kept is not None else self._reopen(name)

    def _reopen(self, name: str) -> int:
        fd, signature = open_inside(self.folder / name, self._roots)
        if signature != self._signatures[name]:
            os.close(fd)
            raise _changed(name)
        return fd

    def check_unchanged(self) -> None:
        """See `Source.check_unchanged`."""
        for name, expected in self._signatures.items():
            kept = self._descriptors.get(name)
            try:
                named = signature_of((self.folder / name).stat())
                opened = expected if kept is None else signature_of(os.fstat(kept))
            except OSError:
                raise _changed(name) from None
            if named != expected or opened != expected:
                raise _changed(name)

    def close(self) -> None:
        """Close the files; reading afterwards opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> FolderSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _changed(name: str) -> InputError:
    return InputError("changed while it was read", file=name, hint="wait until nothing writes to it, and run again")
