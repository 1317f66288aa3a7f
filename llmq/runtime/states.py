"""Hidden states between two blocks: in memory, or in a scratch file where they would take too much."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmq.checkpoint.faults import writing
from llmq.errors import ResourceError, UsageError
from llmq.system.files import preadv, preallocate, pwrite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["HiddenStates"]


@contextlib.contextmanager
def _scratch(folder: Path | None) -> Iterator[None]:
    """Turn errors of the system, met in a folder, or in the one for temporary files, into ours."""
    try:
        with writing(folder or Path(tempfile.gettempdir())):
            yield
    except (ResourceError, UsageError) as error:
        if folder is None:
            error.hint = "set TMPDIR to a folder with more room"
        raise


class HiddenStates:
    """Rows of float32 that are read and written in ranges.

    The file has no name, so that nothing is left of it whatever happens. It is read and written, not mapped: its pages
    then never count as memory of the process.

    Parameters
    ----------
    rows, width : int
        Positions and elements of each.
    budget : int
        Bytes that they may take in memory; where they take more, they go to a file.
    folder : Path, optional
        Where that file is; the folder for temporary files by default.

    Raises
    ------
    ResourceError
        Not enough memory, or no room on the disk.
    """

    def __init__(self, rows: int, width: int, budget: int, *, folder: Path | None = None) -> None:
        self._width, self._folder = width, folder
        size = 4 * rows * width
        self.in_file = size > budget
        if not self.in_file:
            try:
                self._array = np.empty((rows, width), np.float32)
            except MemoryError:
                hint = "a smaller --max-memory puts them into a file"
                raise ResourceError("not enough memory for hidden states", found=f"{size} bytes", hint=hint) from None
            return
        with _scratch(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed with these states)
            try:
                preallocate(self._file.fileno(), size)
            except BaseException:
                self._file.close()
                raise

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, float32 (stop - start, width), to be changed and given to `write`."""
        if not self.in_file:
            return self._array[start:stop]
        found = np.empty((stop - start, self._width), np.float32)
        preadv(self._file.fileno(), found.reshape(-1).view(np.uint8).data, 4 * start * self._width)
        return found

    def write(self, start: int, x: np.ndarray) -> None:
        """Keep rows from `start` on, float32 (n, width), C-contiguous. Raises ResourceError where that fails."""
        if self.in_file:
            with _scratch(self._folder):
                pwrite(self._file.fileno(), x.reshape(-1).view(np.uint8).data, 4 * start * self._width)
        elif not np.shares_memory(x, self._array):
            self._array[start : start + len(x)] = x

    def close(self) -> None:
        """Give memory or disk back."""
        if self.in_file:
            self._file.close()

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
