"""Where the weights come from: a folder, a single file, a repository of the Hub, or a folder of another server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmq.checkpoint.companions import split_companions
from llmq.checkpoint.faults import reading
from llmq.checkpoint.folder_source import FolderSource
from llmq.checkpoint.remote_source import RemoteSource
from llmq.checkpoint.safe_open import MAX_SMALL
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.system.files import is_present

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from llmq.checkpoint.header import TensorInfo

__all__ = ["FolderSource", "Source", "open_local", "open_source", "select_copies"]


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
    in_file_order: bool
    """Whether tensors are best read in the order of `tensors`: what is checked on the way then covers all bytes."""

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


def open_source(model: str | Path, *, revision: str | None = None) -> Source:
    """Open a checkpoint to be read tensor by tensor, with nothing of the weights copied to this machine.

    Parameters
    ----------
    model : str or Path
        A folder or a ``.safetensors`` file of this machine; ``org/name[@revision]`` on the Hub; or the address of a
        folder that fsspec reads, such as ``s3://bucket/model``. A name that exists locally is local.
    revision : str, optional
        Of a repository.

    Raises
    ------
    UsageError
        A revision of something that has none, or two revisions, or an address that needs a package not installed.
    InputError
        Nothing there, or something unsound.
    UnsupportedError
        Weights in formats that llmq does not read.
    NetworkError
        The Hub or another server could not be reached, or refused.
    """
    if isinstance(model, Path) or _is_here(model):
        return _open_here(Path(model), revision)
    if "://" in model:
        if revision is not None:
            raise UsageError("a revision needs a repository of the Hub", file=model)
        from llmq.checkpoint.fsspec_files import find_url

        return RemoteSource(find_url(model), label=model)
    from llmq.checkpoint.hub import Download
    from llmq.checkpoint.hub_files import find_repository

    found = find_repository(model, revision=revision)
    if isinstance(found, Download):
        return FolderSource(found.folder, label=model, hub=found.identity)
    return RemoteSource(found, label=model)


def open_local(model: str | Path, *, revision: str | None = None) -> FolderSource:
    """Open a checkpoint whose files can be mapped: a repository of the Hub is downloaded first.

    Parameters and errors are those of `open_source`, but for addresses of other servers, which are refused.
    """
    if isinstance(model, Path) or _is_here(model):
        return _open_here(Path(model), revision)
    if "://" in model:
        raise UsageError("weights are mapped from files of this machine", file=model, hint="copy the folder first")
    from llmq.checkpoint.hub import download

    downloaded = download(model, revision=revision)
    return FolderSource(downloaded.folder, label=model, hub=downloaded.identity)


def _is_here(path: str | Path) -> bool:
    with reading(path):
        return is_present(path)


def _open_here(path: Path, revision: str | None) -> FolderSource:
    if not _is_here(path):
        raise InputError("no such folder", file=path)
    if revision is not None:
        raise UsageError("a revision needs a repository of the Hub", file=path)
    with reading(path):
        is_folder = path.is_dir()
    if is_folder:
        return FolderSource(path, label=str(path))
    if path.suffix == ".safetensors":
        return FolderSource(path.parent, label=str(path), only=path.name)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"):
        raise UnsupportedError(
            f"{path.suffix} files are not supported", file=path, hint="use the checkpoint in safetensors"
        )
    if path.suffix == ".onnx":
        hint = "`llmq quantize` and llmq.onnx.quantize_model quantize ONNX models; others take checkpoints only"
        raise UnsupportedError("an ONNX model is no checkpoint", file=path, hint=hint)
    raise InputError("neither a folder nor a .safetensors file", file=path)


def select_copies(source: Source) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Part the files beside the weights: those an output carries, with their paths, and the names of the rest.

    Raises
    ------
    InputError
        One to carry that is larger than any tokenizer.
    """
    copied, skipped = split_companions(source.other_files)
    paths = {name: source.folder / name for name in copied}
    for name, path in paths.items():
        size = path.stat().st_size if path.exists() else 0
        if size > MAX_SMALL:
            raise InputError("too long", file=name, expected=f"at most {MAX_SMALL} bytes", found=size)
    return paths, skipped
