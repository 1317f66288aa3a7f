"""Reading past the page cache: what comes once a pass must not push out what is needed every time."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from typing import Final

import numpy as np

from llmq.system.files import preadv

__all__ = ["ALIGNMENT", "PIECE", "REQUESTS", "DirectFile", "aligned_buffer"]

ALIGNMENT: Final = 4096
"""What places in a file, addresses and lengths must be multiples of."""

PIECE: Final = 4 << 20
"""Bytes of a request, where much is read."""

REQUESTS: Final = 4
"""Requests at a time: disks read several quicker than one."""


def aligned_buffer(size: int) -> np.ndarray:
    """Make room, uint8 (size,), at an address that a disk can read to; its memory is taken where it is written."""
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


class DirectFile:
    """A file that is read without leaving its bytes in the page cache.

    Linux and macOS read straight into the buffer; elsewhere, and on disks that cannot, the bytes go through the cache
    and are dropped from it where the system can be told.

    Parameters
    ----------
    fd : int
        Open for reading; owned, and closed by `close`.
    cached : bool
        Use the page cache after all: for a file that fits into it as a whole.
    """

    def __init__(self, fd: int, *, cached: bool = False) -> None:
        self._fd = fd
        self._cached = cached
        self._direct = None if cached else _reopened(fd)
        self._end = weakref.finalize(self, _close, [fd] if self._direct is None else [fd, self._direct])

    def read(self, buffer: memoryview, offset: int, count: int) -> int:
        """Read `count` bytes from `offset` on; more may be read, up to the next multiple of `ALIGNMENT`.

        Parameters
        ----------
        buffer : memoryview
            Of bytes, writable; its address, `offset` and its length are multiples of `ALIGNMENT`.
        offset, count : int
            Bytes.

        Returns
        -------
        int
            Bytes read: fewer than `count` only at the end of the file.

        Raises
        ------
        OSError
            The system could not read.
        """
        if self._direct is not None:
            try:
                return _read_aligned(self._direct, buffer, offset, count)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # A disk of larger sectors, or a file system that only seemed to agree.
        done = preadv(self._fd, buffer[:count], offset)
        if not self._cached and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)
        return done

    def close(self) -> None:
        """Close the file, as happens to one that nobody holds any more."""
        self._end()


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _read_aligned(fd: int, buffer: memoryview, offset: int, count: int) -> int:
    done = 0
    while done < count:
        start = done - done % ALIGNMENT  # where a short read ended, or before it
        got = os.preadv(fd, [buffer[start:]], offset + start)
        if start + got <= done:  # the end of the file
            break
        done = start + got
    return done


def _reopened(fd: int) -> int | None:
    """Open the same file once more, to be read directly; None where that is not to be had."""
    if hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    elif sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
    return None
