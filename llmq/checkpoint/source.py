"""Where the weights come from: a folder, a single file, or a repository of the Hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import is_weight_file, split_companions
from llmq.checkpoint.header import Header, TensorInfo, read_header
from llmq.checkpoint.index import INDEX_FILE, SCRATCH, shard_names, weight_map
from llmq.checkpoint.manifest import MANIFEST
from llmq.checkpoint.safe_open import Signature, allowed_roots, open_inside, read_small, signature_of
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.system.files import preadv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["CONFIG_FILE", "FolderSource", "Source", "open_source", "select_copies"]

CONFIG_FILE: Final = "config.json"
_KEPT_OPEN: Final = 200  # shards; a process may often open no more than 1,024 files


class Source(Protocol):
    """A checkpoint that can be read tensor by tensor."""

    label: str
    """What the user called it."""
    folder: Path
    config: dict[str, Any]
    """The parsed ``config.json``; empty where there is none."""
    tensors: Mapping[str, TensorInfo]
    """By name, ordered by file and offset."""
    other_files: tuple[str, ...]
    """Names of the other regular files in the folder, sorted."""

    def identity(self) -> dict[str, Any]:
        """Tell this source from any other, JSON-able: names, sizes, times and hashes of headers."""
        ...

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a tensor, from byte `start` of it. Safe to call from several threads."""
        ...

    def check_unchanged(self) -> None:
        """Raise InputError if a file is not what it was when it was opened."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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

    def __init__(self, folder: Path, *, label: str, only: str | None = None, hub: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.label = label
        self._hub = hub
        self._roots = allowed_roots(folder)
        self._descriptors: dict[str, int] = {}
        self._signatures: dict[str, Signature] = {}
        self._headers: dict[str, Header] = {}
        self.config: dict[str, Any] = {}
        self.other_files: tuple[str, ...] = ()
        self._config_digest: str | None = None
        try:
            index = None if only else self._read_folder()
            names = sorted(entry.name for entry in folder.iterdir())
            for name in [only] if only else shard_names(folder, names, index):
                self._open(name)
            self.tensors: Mapping[str, TensorInfo] = _merge(self._headers)
            if index is not None:
                _check_index(index, self.tensors)
        except BaseException:
            self.close()
            raise

    def _read_folder(self) -> dict[str, str] | None:
        if (self.folder / SCRATCH).exists() and not (self.folder / MANIFEST).exists():
            hint = "run the same `llmq quantize` again to finish it"
            raise InputError("unfinished output of an interrupted run", file=self.folder, hint=hint)
        if os.path.lexists(self.folder / CONFIG_FILE):
            data = read_small(self.folder / CONFIG_FILE, self._roots)
            config = json_strict.loads(data, CONFIG_FILE)
            if not isinstance(config, dict):
                raise InputError("not a JSON object", file=CONFIG_FILE)
            self.config = config
            self._config_digest = hashlib.sha256(data).hexdigest()
        others = (path for path in self.folder.iterdir() if not is_weight_file(path.name))
        self.other_files = tuple(sorted(path.name for path in others if self._is_plain(path)))
        return weight_map(self.folder, self._roots)

    def _is_plain(self, path: Path) -> bool:
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return False
        return real.is_file() and any(real.is_relative_to(root) for root in self._roots)

    def _open(self, name: str) -> None:
        fd, signature = open_inside(self.folder / name, self._roots)
        self._signatures[name] = signature
        try:
            self._headers[name] = read_header(fd, name)
        except BaseException:
            os.close(fd)
            raise
        if len(self._descriptors) < _KEPT_OPEN:
            self._descriptors[name] = fd
        else:
            os.close(fd)

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
            raise InputError(f"cannot be read: {error.strerror}", file=info.file, tensor=info.name) from error
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


def open_source(model: str | Path, *, revision: str | None = None) -> FolderSource:
    """Open a checkpoint: a folder, a ``.safetensors`` file, or ``org/name[@revision]`` on the Hub.

    A name that exists locally is local. A repository is downloaded into the Hugging Face cache first.

    Raises
    ------
    UsageError
        A revision for something local, or two revisions.
    InputError
        Nothing there, or something unsound.
    UnsupportedError
        Weights in formats that llmq does not read.
    NetworkError
        The Hub could not be reached, or refused.
    """
    path = Path(model)
    if not os.path.lexists(path):
        if isinstance(model, Path):
            raise InputError("no such folder", file=model)
        from llmq.checkpoint.hub import download

        downloaded = download(model, revision=revision)
        return FolderSource(downloaded.folder, label=model, hub=downloaded.identity)
    if revision is not None:
        raise UsageError("a revision needs a repository of the Hub", file=model)
    if path.is_dir():
        return FolderSource(path, label=str(model))
    if path.suffix == ".safetensors":
        return FolderSource(path.parent, label=str(model), only=path.name)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"):
        raise _other_format(path)
    raise InputError("neither a folder nor a .safetensors file", file=model)


def select_copies(source: Source) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Part the files beside the weights: those an output carries, with their paths, and the names of the rest."""
    copied, skipped = split_companions(source.other_files)
    return {name: source.folder / name for name in copied}, skipped


def _other_format(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path.suffix} files are not supported", file=path, hint="use the checkpoint in safetensors"
    )


def _merge(headers: Mapping[str, Header]) -> dict[str, TensorInfo]:
    merged: dict[str, TensorInfo] = {}
    for name, header in headers.items():
        for info in header.tensors:
            if info.name in merged:
                raise InputError(f"also stands in {merged[info.name].file}", file=name, tensor=info.name)
            merged[info.name] = info
    return merged


def _check_index(index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for tensor, shard in index.items():
        info = tensors.get(tensor)
        if info is None or info.file != shard:
            found = "in no shard" if info is None else f"in {info.file}"
            raise InputError("the index names it", file=INDEX_FILE, tensor=tensor, expected=f"in {shard}", found=found)
    unlisted = [info for name, info in tensors.items() if name not in index]
    if unlisted:
        more = f" (and {len(unlisted) - 1} more)" if len(unlisted) > 1 else ""
        raise InputError(f"missing in {INDEX_FILE}{more}", file=unlisted[0].file, tensor=unlisted[0].name)


def _changed(name: str) -> InputError:
    return InputError("changed while it was read", file=name, hint="wait until nothing writes to it, and run again")
