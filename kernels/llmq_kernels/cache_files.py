"""Compiled kernels on disk: one file for each variant of a function, which is checked before it is run.

Numba keeps an index and numbered files. Two processes that write at once can leave an index that names the other's
code, and a flipped bit is found by running it. Here a file is named by a hash of what the code was compiled for, and
begins with a hash of that and of its content, so that what it holds is what was asked for, or nothing.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from numba.core import serialize

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CheckedFiles", "is_private"]

_SIZE: Final = hashlib.sha256().digest_size


class CheckedFiles:
    """What one function has been compiled to; takes the place of Numba's `IndexDataCacheFile`.

    Parameters
    ----------
    folder : Path
    name : str
        Files begin with it.
    stamp : object
        Of the function's source: part of every key.
    """

    def __init__(self, folder: Path, name: str, stamp: object) -> None:
        self._folder = folder
        self._name = name
        self._stamp = stamp

    def load(self, key: object) -> Any:
        """Return what was saved for a key; None if nothing was, or not all of it is there as it was written."""
        path, words = self._place(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        found, content = data[:_SIZE], data[_SIZE:]
        return pickle.loads(content) if found == _checksum(words, content) else None  # noqa: S301

    def save(self, key: object, data: object) -> None:
        """Write what was compiled for a key, all or nothing; OSError where it cannot be written."""
        path, words = self._place(key)
        content: bytes = serialize.dumps(data)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
        try:
            temporary.write_bytes(_checksum(words, content) + content)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def flush(self) -> None:
        """Forget everything."""
        for path in self._folder.glob(f"{self._name}.*.nbc"):
            path.unlink(missing_ok=True)

    def _place(self, key: object) -> tuple[Path, bytes]:
        """Where a key's code stands, and the key in words."""
        words = repr((self._stamp, key)).encode()
        return self._folder / f"{self._name}.{hashlib.sha256(words).hexdigest()[:32]}.nbc", words


def _checksum(words: bytes, content: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(words).digest() + content).digest()


def is_private(folder: Path) -> bool:
    """Whether nobody else can put machine code into a folder: it is ours, and not open to all."""
    if not hasattr(os, "geteuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o002
