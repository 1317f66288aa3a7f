"""A lock file that one process at a time can hold, and that a dead process never leaves held."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileLock", "Held"]

_log = logging.getLogger("llmq")

_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
"""A link that somebody put there is not followed: what it leads to would be overwritten."""


class Held(Exception):  # noqa: N818
    """Someone else holds the lock; the text says who, as far as they told."""


class FileLock:
    """An exclusive lock on `path`, taken by `acquire` and dropped by `release` or with the process.

    The file says who holds it. It stays behind after `release`; removing it is safe while the lock is held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting.

        Raises
        ------
        Held
            Another process, or another `FileLock`, has it.
        OSError
            The file cannot be made, or is a symbolic link.
        """
        while self._fd is None:
            fd = os.open(self.path, _FLAGS, 0o666)
            try:
                self._lock(fd)
                if not _names(self.path, fd):  # removed between opening and locking: a lock on nothing
                    os.close(fd)
                    continue
                os.ftruncate(fd, 0)
                owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                os.write(fd, owner.encode())
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd

    def release(self) -> None:
        """Drop the lock; nothing where it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _lock(self, fd: int) -> None:
        try:
            _lock_file(fd)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise Held(os.read(fd, 200).decode(errors="replace") or "another process") from None
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL):
                raise
            _log.warning("%s: this file system has no locks: take care that no second run writes here", self.path)


def _names(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock_file(fd: int) -> None:
        import msvcrt

        # Far behind the text, which others must be able to read.
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        os.lseek(fd, 0, os.SEEK_SET)

else:

    def _lock_file(fd: int) -> None:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
