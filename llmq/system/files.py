"""Reading and writing at offsets, preallocation, durable renames and free disk, on every platform."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "atomic_write",
    "free_bytes",
    "is_present",
    "make_folder",
    "preadv",
    "preallocate",
    "pwrite",
    "replace",
    "sync_data",
    "sync_file",
    "sync_folder",
]

_READ_ALONE: Final = threading.Lock()
_BINARY: Final = getattr(os, "O_BINARY", 0)
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_LARGEST_IO: Final = 1 << 30  # macOS refuses requests of 2 GiB
_OLD_SECONDS: Final = 600


def preadv(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset` of an open file; short reads are continued.

    Parameters
    ----------
    fd : int
        Open for reading.
    buffer : memoryview
        Contiguous, writable, of bytes.
    offset : int
        In bytes from the start of the file.

    Returns
    -------
    int
        Bytes read: fewer than the buffer holds only at the end of the file.

    Raises
    ------
    OSError
        The system could not read.
    """
    done = 0
    while done < len(buffer):
        count = _read_once(fd, buffer[done : done + _LARGEST_IO], offset + done)
        if count == 0:
            break
        done += count
    return done


def _read_once(fd: int, buffer: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    with _READ_ALONE:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def pwrite(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` (contiguous bytes) at `offset`; short writes are continued. Raises OSError."""
    done = 0
    while done < len(data):
        count = _write_once(fd, data[done : done + _LARGEST_IO], offset + done)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += count


def _write_once(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _READ_ALONE:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def preallocate(fd: int, size: int) -> None:
    """Make a new file `size` bytes long with its disk space taken now, so that a full disk shows at once.

    Where the system cannot reserve space, the free space is compared instead and the file is sparse.

    Raises
    ------
    OSError
        ENOSPC, EDQUOT or EFBIG: there is no room for it.
    """
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
                raise
        else:
            return
    if hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize < size - os.fstat(fd).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, size)


def sync_file(fd: int) -> None:
    """Return once the file's data and size are on the disk."""
    if hasattr(os, "F_FULLFSYNC"):
        import fcntl

        # macOS leaves data in the drive's cache after fsync.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, os.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """Like `sync_file`, but without times and other metadata where the system can tell them apart."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_folder(folder: Path) -> None:
    """Return once renames and removals in `folder` are on the disk; nothing where folders cannot be opened."""
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOEXEC)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there; what was made is on the disk. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not is_present(path)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def is_present(path: str | Path) -> bool:
    """Whether a path names anything, a link that leads nowhere too; a disk that fails to tell is an OSError."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # or a name with NUL
        return False
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return True


def replace(source: Path, target: Path) -> None:
    """Rename atomically over `target`, and make the rename durable in both folders."""
    source.replace(target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def atomic_write(path: Path, data: bytes | Iterable[bytes], *, temporary: Path | None = None) -> None:
    """Write a file so that it is absent or whole, whatever happens meanwhile, with permissions as the umask says.

    Parameters
    ----------
    path : Path
        The file; replaced if it exists.
    data : bytes or iterable of bytes
        All of it, or piece by piece.
    temporary : Path or None
        Written first and renamed, on the same disk; a kill may leave it behind. None takes a name beside `path`, and
        removes what kills left of such ones ten minutes ago or longer.

    Raises
    ------
    OSError
        Nothing of the file is left behind.
    """
    if temporary is None:
        _remove_old(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY | _CLOEXEC | _NOFOLLOW, 0o666)
    try:
        try:
            place = 0
            for piece in (data,) if isinstance(data, bytes) else data:
                pwrite(fd, memoryview(piece), place)
                place += len(piece)
            sync_file(fd)
        finally:
            os.close(fd)
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _remove_old(path: Path) -> None:
    """Remove temporary files of `path` that nobody can be writing any more."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            ours = entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp")
            if ours and entry.is_file(follow_symlinks=False) and time.time() - entry.stat().st_mtime > _OLD_SECONDS:
                Path(entry.path).unlink()


def free_bytes(path: Path) -> int:
    """Bytes a user may still write on the disk that holds `path`, which need not exist yet."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
