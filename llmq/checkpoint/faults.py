"""What an error of the operating system while reading or writing means to a user."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from llmq.errors import InputError, LlmqError, ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["reading", "unreadable", "writing"]

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RESOURCES: Final = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_FAILING: Final = {errno.EIO, *_NO_RESOURCES}
_NOT_THERE: Final = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # a link that leads nowhere
    errno.ELOOP,
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system, met while writing `path`, into ours.

    Raises
    ------
    ResourceError
        The disk is full, or failing, or memory or descriptors ran out.
    UsageError
        Nothing may be written there.
    InputError
        Files vanished meanwhile.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        if error.errno in _NO_ROOM:
            hint = "free some space and run the same command again: it goes on where it stopped"
            raise ResourceError(what, file=path, hint=hint) from error
        if error.errno in _FAILING:
            raise ResourceError(
                what, file=path, hint="run the same command again: it goes on where it stopped"
            ) from error
        if error.errno in _NOT_THERE:
            raise UsageError(what, file=path, hint="choose another output folder") from error
        if isinstance(error, FileNotFoundError):
            raise InputError("vanished while it was written", file=error.filename or path) from error
        raise


def unreadable(error: OSError, file: object, *, tensor: str | None = None) -> LlmqError:
    """What to raise for an error of the system met while reading `file`: a bad file, or a process out of means."""
    if isinstance(error, FileNotFoundError):
        return InputError("vanished while it was read", file=file, tensor=tensor)
    kind = ResourceError if error.errno in _NO_RESOURCES else InputError
    return kind(f"cannot be read: {error.strerror or error}", file=file, tensor=tensor)


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Turn errors of the system, met while reading `file` or what an error names in its place, into ours.

    Raises
    ------
    InputError
        It cannot be read.
    ResourceError
        Memory or descriptors ran out.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(error, file if error.filename is None else error.filename) from error
