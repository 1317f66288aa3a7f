"""Opening the files of a checkpoint, which strangers wrote: regular files inside its folder only, never blocking."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.faults import unreadable
from llmq.errors import InputError
from llmq.system.files import preadv

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MAX_SMALL", "Signature", "allowed_roots", "open_inside", "read_small", "signature_of"]

MAX_SMALL: Final = 100_000_000
"""Longest JSON file read, in bytes."""

# Without O_NONBLOCK, opening a FIFO would wait for a writer.
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
_FOLDER: Final = (
    getattr(os, "O_PATH", os.O_RDONLY)
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


@dataclass(frozen=True)
class Signature:
    """What tells whether a file is still the same: device, inode, size in bytes and time of change in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int


def signature_of(status: os.stat_result) -> Signature:
    """Return the signature in a `stat` result."""
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def allowed_roots(folder: Path) -> tuple[Path, ...]:
    """Folders that the files of `folder` may resolve into: itself and, in a Hugging Face cache, its blob stores.

    A snapshot there holds links to ``../../blobs`` of its repository, and these may be links to ``blobs`` of the cache.
    """
    real = folder.resolve()
    repo = real.parent.parent
    if real.parent.name == "snapshots" and repo.name.startswith("models--"):
        return (real, repo / "blobs", repo.parent / "blobs")
    return (real,)


def open_inside(path: Path, roots: tuple[Path, ...]) -> tuple[int, Signature]:
    """Open a regular file whose resolved path lies below one of `roots`; nothing else is opened on the way.

    The path is resolved first. What it resolves to is opened from its root downward without following any link, so
    that a link put there meanwhile leads nowhere.

    Returns
    -------
    (int, Signature)
        A descriptor open for reading, and what was opened.

    Raises
    ------
    InputError
        Missing, unreadable, not a regular file, or outside.
    """
    name = path.name
    try:
        real = path.resolve(strict=True)
        root = next((root for root in roots if root in real.parents), None)
        if root is None:
            raise InputError(
                "it leads out of the checkpoint's folder", file=name, hint="put the file itself in place of the link"
            )
        fd, status = _open_below(root, real.relative_to(root).parts, name)
    except FileNotFoundError:
        raise InputError("no such file", file=name) from None
    except RuntimeError as error:  # what older Pythons raise where links go round in circles
        raise InputError("cannot be opened: a link that leads to itself", file=name) from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise unreadable(error, name) from error
        raise InputError(f"cannot be opened: {error.strerror}", file=name) from error
    return fd, signature_of(status)


def _open_below(root: Path, parts: tuple[str, ...], name: str) -> tuple[int, os.stat_result]:
    """Open the regular file at `parts` below `root`, no part of which may be a link."""
    if os.open not in os.supports_dir_fd:
        return _open_alone(root.joinpath(*parts), name)
    folder = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        _check_regular(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False), name)
        fd = os.open(parts[-1], _FLAGS, dir_fd=folder)
    finally:
        os.close(folder)
    return _checked(fd, name)


def _open_alone(real: Path, name: str) -> tuple[int, os.stat_result]:
    """Open a resolved path where the system cannot open from a folder downward."""
    before = real.lstat()
    _check_regular(before, name)
    fd, status = _checked(os.open(real, _FLAGS), name)
    if not os.path.samestat(before, status):
        os.close(fd)
        raise InputError("changed while it was opened", file=name)
    return fd, status


def _checked(fd: int, name: str) -> tuple[int, os.stat_result]:
    """`fd` and its status, unless something else was put in the file's place just before it was opened."""
    try:
        status = os.fstat(fd)
        _check_regular(status, name)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _check_regular(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"it is {kind}", file=name)


def read_small(path: Path, roots: tuple[Path, ...]) -> bytes:
    """Read the whole of a small file such as ``config.json``, opened by `open_inside`. Raises InputError."""
    fd, signature = open_inside(path, roots)
    try:
        if signature.size > MAX_SMALL:
            raise InputError("too long", file=path.name, expected=f"at most {MAX_SMALL} bytes", found=signature.size)
        buffer = bytearray(signature.size)
        count = preadv(fd, memoryview(buffer), 0)
    except OSError as error:
        raise unreadable(error, path.name) from error
    finally:
        os.close(fd)
    return bytes(buffer[:count])
