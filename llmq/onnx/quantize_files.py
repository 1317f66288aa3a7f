"""The two files of a quantized model, `out.onnx` and `out.onnx.data`, which appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError, UsageError
from llmq.onnx.data_file import data_path, refuse_name
from llmq.system.files import free_bytes, preallocate, pwrite, replace, sync_file, sync_folder
from llmq.system.lock import FileLock, Held

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np

__all__ = ["ModelFiles", "refuse_output"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_output(output: Path, sources: list[Path], *, overwrite: bool) -> None:
    """Raise UsageError if an output cannot be written: a folder, something finished, or a file of the source."""
    if output.suffix != ".onnx":
        raise UsageError("the output of an ONNX model is a file", file=output, expected="a name ending in .onnx")
    refuse_name(output)
    if not output.parent.is_dir():
        raise UsageError("no such folder", file=output.parent)
    for path in (output, data_path(output)):
        if path.is_dir():
            raise UsageError("is a folder", file=path, expected="a file")
        if path.exists() and any(path.samefile(source) for source in sources):
            raise UsageError("the output would replace a file of the source", file=path, hint="choose another name")
    if not overwrite:
        _refuse_finished(output)


def _refuse_finished(output: Path) -> None:
    for path in (output, data_path(output)):
        if path.exists():
            raise UsageError("exists already", file=path, hint="replace it with --overwrite")


class ModelFiles:
    """Writes the data of a model and then its structure; a context manager that leaves nothing unless committed.

    Parameters
    ----------
    output : Path
        The model; its data stands beside it.
    size : int
        Bytes of the data: they are reserved at once.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    ResourceError
        No room.
    UsageError
        Another run writes there, or has done so since `refuse_output`.
    """

    def __init__(self, output: Path, size: int, *, overwrite: bool) -> None:
        self._output = output
        self._data = data_path(output)
        self._staged_data = output.with_name(f".{output.name}.data.tmp")
        self._staged_model = output.with_name(f".{output.name}.tmp")
        self._lock = FileLock(output.with_name(f".{output.name}.lock"))
        self._size = size
        self._overwrite = overwrite
        self._fd = -1
        self._placing = False

    def __enter__(self) -> ModelFiles:
        try:
            self._lock.acquire()
        except Held as owner:
            raise UsageError(f"another run is writing here: {owner}", file=self._output) from None
        try:
            if not self._overwrite:
                _refuse_finished(self._output)
            free = free_bytes(self._output.parent)
            if self._size > free:
                raise self._full(f"{free} bytes free")
            self._fd = _new_file(self._staged_data)
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
        """Put data and structure in their places once both are on the disk; an earlier model goes first.

        So they never mix, and what makes writing fail comes before anything is removed.
        """
        with self._room():
            sync_file(self._fd)
            self._close()
            self._fd = _new_file(self._staged_model)
            pwrite(self._fd, memoryview(model), 0)
            sync_file(self._fd)
            self._close()  # Windows renames no open files
            self._placing = True
            self._output.unlink(missing_ok=True)
            sync_folder(self._output.parent)
            replace(self._staged_data, self._data)
            replace(self._staged_model, self._output)
            self._placing = False

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

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _clean(self) -> None:
        self._close()
        left = [self._staged_data, self._staged_model]
        if self._placing and not self._output.exists():
            left.append(self._data)  # alone it is of no use, and would be in the way of the next run
        for path in (*left, self._lock.path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._lock.release()


def _new_file(path: Path) -> int:
    """Open a file for writing, in the place of what a killed run left."""
    path.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.open(path, flags, 0o666)
