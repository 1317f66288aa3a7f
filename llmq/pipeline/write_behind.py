"""Writing while others compute: a thread hands pieces to the writer in order."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import numpy as np

    from llmq.checkpoint.writer import CheckpointWriter

__all__ = ["WriteBehind"]


class WriteBehind:
    """Writes pieces of tensors behind whoever makes them; a context manager.

    Leaving the block, by an exception too, waits until all pieces are written. What the writer raises is raised by the
    next `write`, or on leaving the block; nothing is written after that.

    Parameters
    ----------
    writer : CheckpointWriter
        Nobody else may use it inside the block.
    pieces : int
        How many may wait.
    """

    def __init__(self, writer: CheckpointWriter, pieces: int) -> None:
        self._writer = writer
        self._queue: queue.Queue[tuple[Callable[[], None], Callable[[], None] | None] | None] = queue.Queue(pieces)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="llmq-write", daemon=True)

    def write(self, name: str, data: np.ndarray, done: Callable[[], None] | None = None) -> None:
        """Have the next bytes of a tensor written; `data` must not change until `done` is called.

        Raises
        ------
        LlmqError
            What the writer raised for an earlier piece.
        """
        self._raise()
        self._queue.put((partial(self._writer.write, name, data), done))

    def note_source(self, name: str, digest: str) -> None:
        """See `CheckpointWriter.note_source`; what is written afterwards stands behind it.

        Raises
        ------
        LlmqError
            What the writer raised for an earlier piece.
        """
        self._raise()
        self._queue.put((partial(self._writer.note_source, name, digest), None))

    def __enter__(self) -> WriteBehind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._queue.put(None)
            self._thread.join()
        except BaseException:
            # Interrupted again: end now, but not while the thread is inside the writer, whose files will be closed.
            self._dropping = True
            self._thread.join()
            raise
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            write, done = piece
            try:
                if self._error is None and not self._dropping:
                    write()
            except BaseException as error:
                self._error = error
            if done is not None:
                done()
