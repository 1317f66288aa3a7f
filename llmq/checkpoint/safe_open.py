"""Opening the files of a checkpoint, which strangers wrote: regular files inside its folder only, never blocking."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.faults import reading, unreadable
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
    | getattr(os, "O_BINARY", 0)
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
    """Open a regular file whose resolved path lies below one of `roots`.

    What was opened is compared with what the resolved path names, so that a link swapped meanwhile is noticed.

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
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise InputError("no such file", file=name) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise unreadable(error, name) from error
        raise InputError(f"cannot be opened: {error.strerror}", file=name) from error
    try:
        with reading(name):
            status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"it is {kind}", file=name)
        if not _is_inside(path, status, roots):
            raise InputError(
                "it leads out of the checkpoint's folder", file=name, hint="put the file itself in place of the link"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd, signature_of(status)


def _is_inside(path: Path, status: os.stat_result, roots: tuple[Path, ...]) -> bool:
    try:
        with reading(path.name):
            real = path.resolve(strict=True)
            same = os.path.samestat(real.lstat(), status)
    except RuntimeError:
        return False
    return same and any(real.is_relative_to(root) for root in roots)


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
