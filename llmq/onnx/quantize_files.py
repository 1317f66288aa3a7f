"""The two files of a quantized model, `out.onnx` and `out.onnx.data`, which appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError, UsageError
from llmq.system.files import atomic_write, free_bytes, preallocate, pwrite, replace, sync_file, sync_folder
from llmq.system.lock import FileLock, Held

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np

__all__ = ["ModelFiles", "data_path", "refuse_output"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def data_path(output: Path) -> Path:
    """The file beside a model that holds its data."""
    return output.with_name(f"{output.name}.data")


def refuse_output(output: Path, sources: list[Path], *, overwrite: bool) -> None:
    """Raise UsageError if an output cannot be written: a folder, something finished, or a file of the source."""
    if output.suffix != ".onnx":
        raise UsageError("the output of an ONNX model is a file", file=output, expected="a name ending in .onnx")
    if not output.parent.is_dir():
        raise UsageError("no such folder", file=output.parent)
    for path in (output, data_path(output)):
        if path.is_dir():
            raise UsageError("is a folder", file=path, expected="a file")
        if path.exists() and any(path.samefile(source) for source in sources):
            raise UsageError("the output would replace a file of the source", file=path, hint="choose another name")
        if path.exists() and not overwrite:
            raise UsageError("exists already", file=path, hint="replace it with --overwrite")


class ModelFiles:
    """Writes the data of a model and then its structure; a context manager that leaves nothing unless committed.

    Parameters
    ----------
    output : Path
        The model; its data stands beside it.
    size : int
        Bytes of the data: they are reserved at once.

    Raises
    ------
    ResourceError
        No room.
    UsageError
        Another run writes there.
    """

    def __init__(self, output: Path, size: int) -> None:
        self._output = output
        self._data = data_path(output)
        self._temporary = output.with_name(f".{output.name}.data.tmp")
        self._lock = FileLock(output.with_name(f".{output.name}.lock"))
        self._size = size
        self._fd = -1

    def __enter__(self) -> ModelFiles:
        try:
            self._lock.acquire()
        except Held as owner:
            raise UsageError(f"another run is writing here: {owner}", file=self._output) from None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            self._temporary.unlink(missing_ok=True)
            free = free_bytes(self._output.parent)
            if self._size > free:
                raise self._full(f"{free} bytes free")
            self._fd = os.open(self._temporary, flags, 0o666)
            with self._room():
                preallocate(self._fd, self._size)
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean()

    def write(self, offset: int, data: np.ndarray) -> None:
        """Write contiguous uint8 `data` at an offset of the data file."""
        with self._room():
            pwrite(self._fd, data.data, offset)

    def commit(self, model: bytes) -> None:
        """Put data and then structure in their places; an earlier model goes first, so that they never mix."""
        with self._room():
            sync_file(self._fd)
            self._output.unlink(missing_ok=True)
            sync_folder(self._output.parent)
            replace(self._temporary, self._data)
            temporary = self._output.with_name(f".{self._output.name}.tmp")
            atomic_write(self._output, model, temporary=temporary)

    @contextlib.contextmanager
    def _room(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise self._full(error.strerror) from error
            raise

    def _full(self, found: object) -> ResourceError:
        return ResourceError(
            "not enough disk", file=self._output, expected=f"{self._size} bytes", found=found, hint="free some"
        )

    def _clean(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
            self._lock.path.unlink(missing_ok=True)
        self._lock.release()
