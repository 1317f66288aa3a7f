"""A checkpoint of which some blocks stand in memory only while they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from llmq.checkpoint.block_reader import BlockReader
    from llmq.checkpoint.mapped import MappedCheckpoint
    from llmq.checkpoint.source import Source

__all__ = ["StreamedCheckpoint", "Tensors", "Turn"]


class Tensors(Protocol):
    """Tensors of a source as arrays."""

    @property
    def source(self) -> Source:
        """What they are of."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor. Raises KeyError, InputError."""
        ...


class StreamedCheckpoint:
    """Arrays over the buffers of a reader for the tensors that it reads, and over mapped files for all others.

    Parameters
    ----------
    mapped : MappedCheckpoint
    reader : BlockReader
        Of the same source.
    """

    def __init__(self, mapped: MappedCheckpoint, reader: BlockReader) -> None:
        self.source: Source = mapped.source
        self._mapped = mapped
        self._reader = reader

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor, read-only; one of the reader's shows its own values within its `Turn` alone."""
        return self._reader.tensor(name) if name in self._reader else self._mapped.tensor(name)


class Turn:
    """The time in which a block of a reader is in its buffer: a context manager, for one thread at a time.

    Parameters
    ----------
    reader : BlockReader
    number : int
        Of the block.
    """

    def __init__(self, reader: BlockReader, number: int) -> None:
        self._reader, self._number, self._held = reader, number, reader.lock

    def __enter__(self) -> None:
        lock = self._reader.lock  # another one after a fork
        lock.acquire()
        self._held = lock
        try:
            self._reader.take(self._number)
        except BaseException:
            lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._reader.give_back(self._number)
        finally:
            self._held.release()
