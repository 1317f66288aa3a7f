"""Being told by the system of everything that happens in a folder, whoever does it: inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["CHANGED", "OPENED", "Watched"]

OPENED: Final = 0x20 | 0x1
"""Opened, or read."""

CHANGED: Final = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200
"""Written, or its attributes; moved, made, removed."""

_EVENT: Final = struct.Struct("iIII")


class Watched:
    """Events in some folders; a context manager.

    Parameters
    ----------
    folders : mapping of Path to int
        What to tell of each.
    """

    def __init__(self, folders: dict[Path, int]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._names: dict[int, str] = {}
        for folder, mask in folders.items():
            number = library.inotify_add_watch(self._fd, os.fsencode(folder), mask)
            if number < 0:
                raise OSError(ctypes.get_errno(), "cannot be watched", str(folder))
            self._names[number] = folder.name

    def events(self) -> list[str]:
        """What happened since this was last asked."""
        found: list[str] = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            place = 0
            while place < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, place)
                name = data[place + _EVENT.size : place + _EVENT.size + length].rstrip(b"\0")
                found.append(f"{self._names[number]}/{os.fsdecode(name)}: {mask:#x}")
                place += _EVENT.size + length

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
