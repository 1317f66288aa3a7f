"""Hidden states of a calibration text between two blocks: in memory, or in a file where they would take too much."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.faults import writing
from llmq.plan.calibrated import HIDDEN_BYTES
from llmq.system.files import replace, sync_file

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.checkpoint.loaded import LoadedCheckpoint

__all__ = ["HiddenStates", "embed"]

_NAME: Final = "hidden-{}.f32"
_FILE: Final = re.compile(r"hidden-(\d+)\.f32")


def embed(loaded: LoadedCheckpoint, tokens: np.ndarray, states: np.ndarray) -> None:
    """Write the embeddings of tokens, int64 (windows, context), into float32 (windows, context, hidden_size)."""
    table = "model.embed_tokens.weight"
    name = table if table in loaded.source.tensors else "lm_head.weight"  # tied, and stored once
    for window, ids in zip(states, tokens, strict=True):
        window[:] = loaded.rows(name, ids)


class HiddenStates:
    """The states that go into a block, float32 (windows, context, hidden_size), saved from block to block.

    Parameters
    ----------
    folder : Path
        Where they are saved: scratch of the run.
    shape : (int, int, int)

    Attributes
    ----------
    layer : int
        The block that they go into.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.layer = 0
        self._folder = folder
        self._shape = shape
        self._bytes = 4 * int(np.prod(shape, dtype=np.int64))
        self._mapped = self._bytes > HIDDEN_BYTES
        with writing(folder):
            working = np.memmap(folder / "hidden.work", np.float32, "w+", shape=shape) if self._mapped else None
        self.array: np.ndarray = np.empty(shape, np.float32) if working is None else working

    def resume(self, complete: int) -> bool:
        """Read the states that an earlier run saved, if they go into a block up to `complete`; whether it did."""
        found = {int(match[1]): path for path in self._folder.iterdir() if (match := _FILE.fullmatch(path.name))}
        layers = [n for n, path in found.items() if 0 < n <= complete and path.stat().st_size == self._bytes]
        if not layers:
            return False
        self.layer = max(layers)
        self.array[:] = np.fromfile(found[self.layer], np.float32).reshape(self._shape)
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
                self.array.tofile(file)
                file.flush()
                sync_file(file.fileno())
            replace(part, target)
            if self.layer:
                (self._folder / _NAME.format(self.layer)).unlink(missing_ok=True)
        self.layer = layer

    def close(self) -> None:
        """Remove the working file; what was saved stays."""
        if self._mapped:
            del self.array
            with writing(self._folder):
                (self._folder / "hidden.work").unlink()
