"""Hidden states of a calibration text between two blocks, saved so that a run can go on from there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.faults import writing
from llmq.plan.calibrated import HIDDEN_BYTES
from llmq.runtime.states import HiddenStates
from llmq.system.files import replace, sync_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmq.checkpoint.loaded import LoadedCheckpoint

__all__ = ["SavedStates", "embed"]

_NAME: Final = "hidden-{}.f32"
_FILE: Final = re.compile(r"hidden-(\d+)\.f32")


def embed(loaded: LoadedCheckpoint, tokens: np.ndarray) -> np.ndarray:
    """Embeddings of tokens, int64 (n,), in float32 (n, hidden_size)."""
    table = "model.embed_tokens.weight"
    name = table if table in loaded.source.tensors else "lm_head.weight"  # tied, and stored once
    return loaded.rows(name, tokens).astype(np.float32)


class SavedStates:
    """The states that go into a block, by windows of a text; saved from block to block.

    Parameters
    ----------
    folder : Path
        Where they are saved: scratch of the run.
    shape : (int, int, int)
        `(windows, context, hidden_size)`.

    Attributes
    ----------
    layer : int
        The block that they go into.
    windows, context : int
        As given.

    Raises
    ------
    ResourceError
        Not enough memory, or no room on the disk.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.layer = 0
        self._folder = folder
        self.windows, self.context, self._width = shape
        self._bytes = 4 * int(np.prod(shape, dtype=np.int64))
        self._states = HiddenStates(self.windows * self.context, self._width, HIDDEN_BYTES, folder=folder)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of windows `start` to `stop`, float32 (stop - start, context, hidden_size)."""
        rows = self._states.read(start * self.context, stop * self.context)
        return rows.reshape(-1, self.context, self._width).copy()

    def write(self, start: int, x: np.ndarray) -> None:
        """Keep windows from `start` on, float32 (n, context, hidden_size)."""
        self._states.write(start * self.context, x.reshape(-1, self._width))

    def parts(self, windows: range, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield some windows, `count` at a time, each time with the number of the first."""
        for start in range(windows.start, windows.stop, count):
            yield start, self.read(start, min(start + count, windows.stop))

    def resume(self, complete: int) -> bool:
        """Read the states that an earlier run saved, if they go into a block up to `complete`; whether it did."""
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := _FILE.fullmatch(path.name))}
        layers = [n for n, path in found.items() if 0 < n <= complete and path.stat().st_size == self._bytes]
        if not layers:
            return False
        self.layer = max(layers)
        size = self.context * self._width
        with found[self.layer].open("rb") as file:
            for window in range(self.windows):
                self.write(window, np.fromfile(file, np.float32, size).reshape(1, self.context, self._width))
        return True

    def save(self, layer: int) -> None:
        """Keep the states, which now go into block `layer`, for a run that goes on from there.

        Raises
        ------
        ResourceError
            No room, or a failing disk.
        """
        target = self._folder / _NAME.format(layer)
        with writing(self._folder):
            part = target.with_suffix(".part")
            with part.open("wb") as file:
                for _, window in self.parts(range(self.windows), 1):
                    window.tofile(file)
                file.flush()
                sync_file(file.fileno())
            replace(part, target)
            if self.layer:
                (self._folder / _NAME.format(self.layer)).unlink(missing_ok=True)
        self.layer = layer

    def close(self) -> None:
        """Give memory or disk back; what was saved stays."""
        self._states.close()
