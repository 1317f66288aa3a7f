"""Reading while others compute: a thread fills a few buffers in turn."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from xxhash import xxh3_128

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source

__all__ = ["Block", "ReadAhead"]

_LINE: Final = 64

_PATIENCE: Final = 0.25
"""Seconds that the thread has to end in once something failed."""


@dataclass(frozen=True)
class Block:
    """Some bytes of a tensor: `nbytes` from byte `start` on."""

    info: TensorInfo
    start: int
    nbytes: int


class ReadAhead:
    """Reads blocks in order into a few buffers, ahead of whoever takes them; a context manager.

    Parameters
    ----------
    source : Source
    blocks : iterable of Block
        What to read.
    size : int
        Bytes of the largest block.
    buffers : int
        How many there are: at least 2, or nothing is read ahead.

    Attributes
    ----------
    digests : dict of str to str
        XXH3-128 by tensor name, in hexadecimal, of tensors whose blocks follow each other from the first byte to the
        last: there before the last block is yielded.
    """

    def __init__(self, source: Source, blocks: Iterable[Block], size: int, buffers: int) -> None:
        self._source = source
        self._blocks = blocks
        # Without bounds: at most as many entries as there are buffers.
        self._ready: queue.SimpleQueue[tuple[np.ndarray, np.ndarray] | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(np.empty(size + 2 * _LINE, np.uint8))
        self.digests: dict[str, str] = {}
        self._digest = xxh3_128()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="llmq-read", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._free.put(None)
        # After an error, not even Ctrl-C should wait for a server that does not answer.
        self._thread.join(None if kind is None else _PATIENCE)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Callable[[], None]]]:
        """Yield each block's bytes, uint8 (nbytes,), and a function that gives its buffer back.

        Raises
        ------
        InputError
            What the source raised, once all that was read before is taken.
        """
        while (found := self._ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            view, buffer = found
            yield view, partial(self._free.put, buffer)

    def _run(self) -> None:
        try:
            for block in self._blocks:
                buffer = self._free.get()
                if buffer is None or self._stopping:
                    return
                view = _place(buffer, block)
                self._source.read_into(block.info, block.start, view.data)
                self._take_digest(block, view)
                self._ready.put((view, buffer))
        except BaseException as error:
            self._ready.put(error)
        else:
            self._ready.put(None)

    def _take_digest(self, block: Block, view: np.ndarray) -> None:
        if block.start == 0:
            self._digest = xxh3_128()
        self._digest.update(view.data)
        if block.start + block.nbytes == block.info.nbytes:
            self.digests[block.info.name] = self._digest.hexdigest()


def _place(buffer: np.ndarray, block: Block) -> np.ndarray:
    """Choose the part of `buffer` to read into: where in a cache line the bytes stand in the file, to 8 bytes.

    Copying out of the page cache is three to four times slower on some processors (Zen 3) when the target is a few
    bytes further into its page than the source.
    """
    wanted = (block.info.offset + block.start) // 8 * 8
    first = (wanted - buffer.ctypes.data) % _LINE
    return buffer[first : first + block.nbytes]
