"""Files of an export: written under other names beside their places, and put there together, the graph last."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.index import INDEX_FILE
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.source import select_copies
from llmq.errors import ResourceError, UsageError
from llmq.onnx.data_file import data_path, refuse_name
from llmq.system.files import free_bytes, replace, sync_file, sync_folder
from llmq.system.lock import FileLock, Held
from llmq.system.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from llmq.checkpoint.source import FolderSource
    from llmq.system.progress import Progress

__all__ = ["Staged", "check_room", "checkpoint_files", "copy", "place_for", "refuse_links", "same_content"]

_BLOCK: Final = 8 << 20
_NOT_SHARED: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_SUFFIX: Final = ".onnx"
_NAME: Final = "model.onnx"
_LOCK: Final = ".llmq.onnx.lock"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def place_for(output: Path, *, overwrite: bool) -> Path:
    """Return the path of a graph: `output`, or `model.onnx` in it where it is a folder.

    Raises
    ------
    UsageError
        Another ending, a name that is not UTF-8, or something is there already.
    """
    if output.is_dir():
        output = output / _NAME
    if output.suffix != _SUFFIX:
        raise UsageError(f"the output must end in {_SUFFIX}", file=output, hint=f"-o {output / _NAME}")
    refuse_name(output)
    for path in (output, data_path(output)):
        if path.is_dir():
            raise UsageError("a folder is in its place", file=path)
        if os.path.lexists(path) and not overwrite:
            raise UsageError("already there", file=path, hint="replace it with --overwrite")
    return output


def checkpoint_files(source: FolderSource) -> dict[str, Path]:
    """Files that a copy of a checkpoint has, by name: weights, configuration, tokenizer, cards, and its manifest."""
    folder = source.folder
    names = {info.file for info in source.tensors.values()} | {"config.json", INDEX_FILE, MANIFEST}
    manifest: dict[str, Any] = read_manifest(folder) or {}
    copies, _ = select_copies(source)
    named = sorted(names | set(copies) | set(manifest.get("files", ())))
    return {name: folder / name for name in named if (folder / name).is_file()}


def check_room(folder: Path, needed: int) -> None:
    """Raise ResourceError unless the disk of `folder` has `needed` bytes free."""
    free = free_bytes(folder)
    if needed > free:
        raise ResourceError(
            "not enough disk space",
            file=folder,
            expected=format_size(needed),
            found=f"{format_size(free)} free",
            hint="export into the checkpoint's own folder: its weights are used from there, without a copy",
        )


class Staged:
    """Files under other names beside their places; a context manager that leaves nothing unless they are published.

    Parameters
    ----------
    folder : Path
        Where they will be; made if it is not there.

    Raises
    ------
    ResourceError
        The disk became full.
    UsageError
        Another run exports into that folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}
        self._last: Path | None = None
        self._lock = FileLock(folder / _LOCK)
        self._new = [path for path in (folder, *folder.parents) if not path.exists()]

    def __enter__(self) -> Staged:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except BaseException as error:
            self._remove_new()
            if isinstance(error, Held):
                raise UsageError(f"another run is writing here: {error}", file=self.folder) from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise ResourceError("not enough disk space", file=self.folder, found=error.strerror) from error

    def path(self, name: str) -> Path:
        """Return where to write what will be `name`; what killed runs left of it goes."""
        if name not in self._made:
            for left in self.folder.glob(f".{_escaped(name)}.*.tmp"):
                if not _is_running(left.name):
                    left.unlink(missing_ok=True)
            self._made[name] = self.folder / f".{name}.{os.getpid()}.tmp"
        return self._made[name]

    def names(self) -> dict[str, str]:
        """Present names by later ones."""
        return {name: path.name for name, path in self._made.items()}

    def publish(self, last: str) -> None:
        """Put all files into their places, `last` last; an earlier one goes first, for it may need what is replaced."""
        self._last = self.folder / last
        self._last.unlink(missing_ok=True)
        sync_folder(self.folder)
        for name in sorted(self._made, key=lambda name: name == last):
            replace(self._made[name], self.folder / name)
        self._made.clear()

    def _discard(self) -> None:
        """Remove what was not published, files that are in their places without the last one included."""
        half = self._last is not None and not self._last.exists()
        for name, path in self._made.items():
            left = self.folder / name if half and not path.exists() else path
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        self._made.clear()
        with contextlib.suppress(OSError):
            self._lock.path.unlink(missing_ok=True)
        self._lock.release()
        self._remove_new()

    def _remove_new(self) -> None:
        """Remove the folders that were made, where nothing is in them."""
        with contextlib.suppress(OSError):
            for path in self._new:
                path.rmdir()


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _is_running(name: str) -> bool:
    """Whether the process that a temporary file is named after still runs, as far as can be known."""
    number = name.split(".")[-2]
    if not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError if a file is a link: ONNX Runtime reads none that are symbolic, ONNX itself none of any kind."""
    for name in names:
        file = folder / name
        if file.is_symlink() or file.stat().st_nlink > 1:
            kind = "a symbolic link" if file.is_symlink() else "a file of several names (hard links)"
            raise UsageError(
                f"{kind}, which ONNX does not trust",
                file=file,
                hint="name an output in another folder: weights are copied there",
            )


def same_content(paths: Iterable[tuple[Path, Path]], *, overwrite: bool) -> set[str]:
    """Names of targets that hold their source's bytes already.

    Raises
    ------
    UsageError
        A target with other bytes, and nothing may be overwritten.
    """
    same = set()
    for source, target in paths:
        if not os.path.lexists(target):
            continue
        regular = target.is_file() and not target.is_symlink()
        if regular and filecmp.cmp(source, target, shallow=False):
            same.add(target.name)
        elif not overwrite or not regular:
            hint = "choose another folder" + (", or replace it with --overwrite" if regular else "")
            raise UsageError("another file is in the place of the checkpoint's", file=target, hint=hint)
    return same


def copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file and return once it is on the disk; file systems that can share the bytes do. Raises OSError."""
    with source.open("rb") as read, target.open("wb") as written:
        while count := _copy_block(read.fileno(), written.fileno()):
            progress.advance(count)
        sync_file(written.fileno())


def _copy_block(read: int, written: int) -> int:
    """Copy the next block, and return how long it was."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(read, written, _BLOCK)
        except OSError as error:
            if error.errno not in _NOT_SHARED:
                raise
    block = memoryview(os.read(read, _BLOCK))
    done = 0
    while done < len(block):
        done += os.write(written, block[done:])
    return done
