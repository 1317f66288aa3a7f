"""A graph's files: written under other names beside their places, and put there together, the graph last."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError, UsageError
from llmq.system.files import free_bytes, preallocate, pwrite, replace, sync_file, sync_folder
from llmq.system.lock import FileLock, Held
from llmq.system.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    import numpy as np

__all__ = ["DataFile", "Staged", "check_room", "data_path", "refuse_output"]

_SUFFIX: Final = ".onnx"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def data_path(graph: Path) -> Path:
    """The file beside a graph that holds its data."""
    return graph.with_name(f"{graph.name}.data")


def refuse_output(output: Path, *, overwrite: bool, sources: Iterable[Path] = (), data: bool = True) -> None:
    """Refuse a place where no graph can be written.

    Parameters
    ----------
    output : Path
        Of the graph.
    overwrite : bool
        Whether files that are there may be replaced.
    sources : iterable of Path
        Files that must not be replaced in any case.
    data : bool
        Whether a file of data will stand beside the graph.

    Raises
    ------
    UsageError
        Another ending, a name that is not UTF-8, a folder, something that is there already, or a file of the source.
    """
    if output.suffix != _SUFFIX:
        raise UsageError(f"the output must end in {_SUFFIX}", file=output, hint=f"-o {output / 'model.onnx'}")
    _refuse_name(output)
    sources = tuple(sources)
    for path in (output, data_path(output)) if data else (output,):
        if path.is_dir():
            raise UsageError("a folder is in its place", file=path)
        if path.exists() and any(path.samefile(source) for source in sources):
            raise UsageError("the output would replace a file of the source", file=path, hint="choose another name")
        if os.path.lexists(path) and not overwrite:
            raise UsageError("already there", file=path, hint="replace it with --overwrite")


def _refuse_name(output: Path) -> None:
    """Refuse a path that a graph cannot name: its text is UTF-8, and names of files need not be."""
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise UsageError("the name of the output is not UTF-8", file=output, hint="choose another name") from None


def check_room(folder: Path, needed: int, *, hint: str = "free some") -> None:
    """Raise ResourceError unless the disk of `folder` has `needed` bytes free."""
    free = free_bytes(folder)
    if needed > free:
        raise _full(folder, hint, expected=format_size(needed), found=f"{format_size(free)} free")


def _full(path: Path, hint: str, *, expected: str | None = None, found: object = None) -> ResourceError:
    return ResourceError("not enough disk space", file=path, expected=expected, found=found, hint=hint)


class Staged:
    """Files under other names beside their places; a context manager that leaves nothing unless they are published.

    Parameters
    ----------
    graph : Path
        The graph's place; its folder is made if it is not there.
    overwrite : bool
        Whether files that are there may be replaced.
    alone : bool
        Whether no other run may write into the folder; else none may write the same graph.

    Raises
    ------
    UsageError
        On entering: another run writes there, or has done so meanwhile.
    ResourceError
        On leaving: the disk was full.
    """

    def __init__(self, graph: Path, *, overwrite: bool, alone: bool = False) -> None:
        self.graph = graph
        self.folder = graph.parent
        self._overwrite = overwrite
        self._made: dict[str, Path] = {}
        self._publishing = False
        self._new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self._lock = FileLock(self.folder / (".llmq.onnx.lock" if alone else f".{graph.name}.lock"))

    def __enter__(self) -> Staged:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except BaseException as error:
            self._remove_folders()
            if isinstance(error, Held):
                raise UsageError(f"another run is writing here: {error}", file=self.graph) from None
            raise
        try:
            refuse_output(self.graph, overwrite=self._overwrite)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise _full(self.graph, "free some", found=error.strerror) from error

    def _discard(self) -> None:
        """Remove what was not published; files that are in their places without the graph are of no use either."""
        half = self._publishing and not self.graph.exists()
        for name, path in self._made.items():
            left = self.folder / name if half and not path.exists() else path
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
        self._made.clear()
        with contextlib.suppress(OSError):
            self._lock.path.unlink(missing_ok=True)
        self._lock.release()
        self._remove_folders()

    def _remove_folders(self) -> None:
        """Remove the folders that were made, where nothing is in them."""
        with contextlib.suppress(OSError):
            for path in self._new:
                path.rmdir()

    def path(self, name: str) -> Path:
        """Return where to write what will be `name`; what killed runs left of it goes."""
        if name not in self._made:
            for left in self.folder.glob(f".{_escaped(name)}.*.tmp"):
                if not _is_running(left.name):
                    left.unlink(missing_ok=True)
            place = self.folder / f".{name}.{os.getpid()}.tmp"
            place.unlink(missing_ok=True)  # a link that somebody put there is not followed
            self._made[name] = place
        return self._made[name]

    def names(self) -> dict[str, str]:
        """Present names by later ones."""
        return {name: path.name for name, path in self._made.items()}

    def write_graph(self, model: bytes) -> Path:
        """Write the graph, and return its present path once it is on the disk. Raises OSError."""
        path = self.path(self.graph.name)
        with path.open("wb") as file:
            file.write(model)
            file.flush()
            sync_file(file.fileno())
        return path

    def publish(self) -> None:
        """Put all files into their places; an earlier graph goes first, for it may need what is replaced."""
        last = self.graph.name
        self._publishing = True
        self.graph.unlink(missing_ok=True)
        sync_folder(self.folder)
        for name in sorted(self._made, key=lambda name: name == last):
            replace(self._made[name], self.folder / name)
        self._made.clear()


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _is_running(name: str) -> bool:
    """Whether the process that a temporary file is named after still runs, as far as can be known."""
    number = name.split(".")[-2]
    # On Windows the signal 0 is Ctrl-C.
    if not number.isdecimal() or sys.platform == "win32":
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


class DataFile:
    """A new file that is written at any offsets; a context manager, after which it is whole and on the disk.

    Parameters
    ----------
    path : Path
    size : int
        In bytes: they are reserved at once.

    Raises
    ------
    OSError
        There is no room for it, or it cannot be written.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._fd = -1

    def __enter__(self) -> DataFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(self._path, flags, 0o666)
        try:
            preallocate(self._fd, self._size)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def write(self, offset: int, data: np.ndarray) -> None:
        """Write contiguous uint8 `data` at an offset."""
        pwrite(self._fd, data.data, offset)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                sync_file(self._fd)
        finally:
            os.close(self._fd)
