"""A disk that loses power: what a process has done to a folder, and what may be left of it.

POSIX promises little: what was written to a file is safe after `fsync` of the file, and a name, or its absence, after
`fsync` of its folder. All else may be there or not, in any order.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

__all__ = ["LOSSES", "Disk", "Loss", "Step", "recorded"]

_PAGE: Final = 512


@dataclass(frozen=True)
class Step:
    """One change: `what` is a method of `Disk`, `arguments` are its own."""

    what: str
    arguments: tuple[Any, ...]


@dataclass
class _File:
    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""


@dataclass
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """What of the unsafe is lost.

    Parameters
    ----------
    names, data : {"lost", "kept", "some"}
        Changes of a folder's names, which are lost or kept together; bytes written to a file, page by page for "some".
    zeros : bool
        Whether lost bytes leave a file of full length behind, as on file systems that allocate late.
    """

    names: str
    data: str
    zeros: bool = False


LOSSES: Final = {
    "all that is not synced": Loss("lost", "lost"),
    "bytes, but no names": Loss("kept", "lost"),
    "bytes, with zeros in their place": Loss("kept", "lost", zeros=True),
    "names, but no bytes": Loss("lost", "kept"),
    "some of both": Loss("some", "some", zeros=True),
}


class Disk:
    """Files below one folder, as they are and as they surely would be after a loss of power.

    Parameters
    ----------
    root : Path
        An existing folder, itself safe, with whatever it holds.
    """

    def __init__(self, root: Path) -> None:
        self._nodes: dict[int, _File] = {}
        self._root = self._read(root)

    def _read(self, path: Path) -> _Folder:
        found: dict[str, _File | _Folder] = {}
        for entry in path.iterdir():
            if entry.is_dir():
                found[entry.name] = self._read(entry)
            else:
                data = entry.read_bytes()
                found[entry.name] = _File(bytearray(data), data)
        return _Folder(found, dict(found))

    def _folder(self, parts: tuple[str, ...]) -> _Folder:
        node: _File | _Folder = self._root
        for part in parts:
            assert isinstance(node, _Folder)
            node = node.now[part]
        assert isinstance(node, _Folder)
        return node

    def apply(self, step: Step) -> None:
        """Do what a process has done."""
        getattr(self, step.what)(*step.arguments)

    def opened(self, number: int, parts: tuple[str, ...], truncated: bool) -> None:
        """A file was opened to be written, or emptied, or made; `number` stands for it from here on."""
        file = self._folder(parts[:-1]).now.setdefault(parts[-1], _File())
        assert isinstance(file, _File)
        if truncated:
            file.now.clear()
        self._nodes[number] = file

    def resized(self, number: int, size: int) -> None:
        """A file was cut, or lengthened by zeros."""
        now = self._nodes[number].now
        del now[size:]
        now.extend(bytes(size - len(now)))

    def wrote(self, number: int, offset: int, data: bytes) -> None:
        """Bytes were written."""
        now = self._nodes[number].now
        now.extend(bytes(max(0, offset + len(data) - len(now))))
        now[offset : offset + len(data)] = data

    def synced(self, number: int) -> None:
        """A file was synced."""
        self._nodes[number].safe = bytes(self._nodes[number].now)

    def synced_folder(self, parts: tuple[str, ...]) -> None:
        """A folder was synced."""
        folder = self._folder(parts)
        folder.safe = dict(folder.now)

    def renamed(self, source: tuple[str, ...], target: tuple[str, ...]) -> None:
        """A file was renamed."""
        node = self._folder(source[:-1]).now.pop(source[-1])
        self._folder(target[:-1]).now[target[-1]] = node

    def removed(self, parts: tuple[str, ...]) -> None:
        """A file, or an empty folder, was removed."""
        del self._folder(parts[:-1]).now[parts[-1]]

    def made(self, parts: tuple[str, ...]) -> None:
        """A folder was made."""
        self._folder(parts[:-1]).now[parts[-1]] = _Folder()

    def write(self, target: Path, loss: Loss | None = None, chance: random.Random | None = None) -> None:
        """Put what is left after a loss into a new folder; without one, all of it."""
        self._write(self._root, target, loss, chance)

    def _write(self, folder: _Folder, target: Path, loss: Loss | None, chance: random.Random | None) -> None:
        target.mkdir()
        lost = loss is not None and (loss.names == "lost" or (loss.names == "some" and _toss(chance)))
        for name, node in (folder.safe if lost else folder.now).items():
            if isinstance(node, _Folder):
                self._write(node, target / name, loss, chance)
            else:
                (target / name).write_bytes(_left(node, loss, chance))


def _toss(chance: random.Random | None) -> bool:
    assert chance is not None
    return chance.random() < 0.5


def _left(file: _File, loss: Loss | None, chance: random.Random | None) -> bytes:
    """Content of a file after a loss."""
    if loss is None or loss.data == "kept":
        return bytes(file.now)
    size = len(file.now) if loss.zeros else len(file.safe)
    left = bytearray(file.safe[:size].ljust(size, b"\0"))
    if loss.data == "some":
        for start in range(0, size, _PAGE):
            if _toss(chance):
                left[start : start + _PAGE] = file.now[start : start + _PAGE]
    return bytes(left)


class _Recorder:
    """Calls of the system that change files below a folder, as steps."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.steps: list[Step] = []
        self._lock = threading.RLock()
        self._numbers: dict[int, int] = {}  # by descriptor
        self._places: dict[int, int] = {}
        self._folders: dict[int, tuple[str, ...]] = {}
        self._count = 0

    def parts(self, path: Any, dir_fd: int | None = None) -> tuple[str, ...] | None:
        """A path below the root, in parts; None for any other."""
        whole = Path.cwd() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        whole = Path(os.path.normpath(whole / os.fsdecode(path)))
        return whole.relative_to(self._root).parts if whole.is_relative_to(self._root) else None

    def add(self, what: str, *arguments: Any) -> None:
        """Note a step."""
        self.steps.append(Step(what, arguments))

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """What to put in place of functions of `os`."""
        return {
            name: self._wrapped(getattr(os, name), getattr(self, f"_{method}"))
            for name, method in _WATCHED.items()
            if hasattr(os, name)
        }

    def _wrapped(self, call: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                result = call(*args, **kwargs)
                note(result, *args, **kwargs)
                return result

        return wrapper

    def _open(self, fd: int, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> None:  # noqa: ARG002
        self._numbers.pop(fd, None)
        self._folders.pop(fd, None)
        parts = self.parts(path, dir_fd)
        if parts is None:
            return
        if Path(f"/proc/self/fd/{fd}").is_dir():
            self._folders[fd] = parts
        elif flags & (os.O_WRONLY | os.O_RDWR):
            self._count += 1
            self._numbers[fd], self._places[fd] = self._count, 0
            self.add("opened", self._count, parts, bool(flags & os.O_TRUNC))

    def _pwrite(self, count: int, fd: int, data: Any, offset: int) -> None:
        if fd in self._numbers:
            self.add("wrote", self._numbers[fd], offset, bytes(data[:count]))

    def _write(self, count: int, fd: int, data: Any) -> None:
        if fd in self._numbers:
            self.add("wrote", self._numbers[fd], self._places[fd], bytes(data[:count]))
            self._places[fd] += count

    def _resize(self, _: None, fd: int, size: int) -> None:
        if fd in self._numbers:
            self.add("resized", self._numbers[fd], size)

    def _fallocate(self, _: None, fd: int, offset: int, size: int) -> None:
        if fd in self._numbers and os.fstat(fd).st_size == offset + size:
            self.add("resized", self._numbers[fd], offset + size)

    def _sync(self, _: None, fd: int) -> None:
        if fd in self._numbers:
            self.add("synced", self._numbers[fd])
        elif fd in self._folders:
            self.add("synced_folder", self._folders[fd])

    def _rename(self, _: None, source: Any, target: Any) -> None:
        one, other = self.parts(source), self.parts(target)
        if one is not None and other is not None:
            self.add("renamed", one, other)

    def _remove(self, _: None, path: Any, *, dir_fd: int | None = None) -> None:
        parts = self.parts(path, dir_fd)
        if parts is not None:
            self.add("removed", parts)

    def _make(self, _: None, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:  # noqa: ARG002
        parts = self.parts(path, dir_fd)
        if parts is not None:
            self.add("made", parts)


_WATCHED: Final = {
    "open": "open",
    "pwrite": "pwrite",
    "write": "write",
    "ftruncate": "resize",
    "posix_fallocate": "fallocate",
    "fsync": "sync",
    "fdatasync": "sync",
    "rename": "rename",
    "replace": "rename",
    "unlink": "remove",
    "remove": "remove",
    "rmdir": "remove",
    "mkdir": "make",
}


@contextmanager
def recorded(root: Path) -> Iterator[list[Step]]:
    """Record what this process does to the files below a folder by functions of `os`; the list grows meanwhile."""
    recorder = _Recorder(root.resolve())
    with ExitStack() as stack:
        for name, replacement in recorder.replacements().items():
            stack.enter_context(patch.object(os, name, replacement))
        yield recorder.steps
