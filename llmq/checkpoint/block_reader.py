"""`BlockReader`: parts of a checkpoint that take turns in a few buffers, read ahead of whoever uses them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.errors import InputError, ResourceError, UsageError
from llmq.system.direct import ALIGNMENT, PIECE, REQUESTS, DirectFile, aligned_buffer
from llmq.system.forks import tell_of_forks
from llmq.system.pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import FolderSource

__all__ = ["BlockReader", "buffer_bytes"]

_BUFFERS: Final = 2
"""One in use, one being filled."""

_GAP: Final = 64 << 10
"""Bytes between two tensors that are read along with them, rather than asked for separately."""


@dataclass(frozen=True)
class _Extent:
    """Bytes `start` to `stop` of a file, which stand from `place` on in a buffer; `start` and `place` are aligned."""

    file: str
    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class _Layout:
    """Extents of one block, and where its tensors stand in a buffer."""

    extents: tuple[_Extent, ...]
    places: dict[str, int]
    nbytes: int


def _lay_out(tensors: Sequence[TensorInfo]) -> _Layout:
    """Join tensors that stand near each other, and give each run of them a place where sectors meet sectors."""
    runs: list[list[TensorInfo]] = []
    for info in sorted(tensors, key=lambda info: (info.file, info.offset)):
        last = runs[-1][-1] if runs else None
        if last is not None and last.file == info.file and info.offset - last.offset - last.nbytes <= _GAP:
            runs[-1].append(info)
        else:
            runs.append([info])
    extents, places, place = [], {}, 0
    for run in runs:
        start, stop = run[0].offset // ALIGNMENT * ALIGNMENT, run[-1].offset + run[-1].nbytes
        extents.append(_Extent(run[0].file, start, stop, place))
        places.update({info.name: place + info.offset - start for info in run})
        place += _aligned(stop - start)
    return _Layout(tuple(extents), places, place)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def buffer_bytes(blocks: Sequence[Sequence[TensorInfo]]) -> int:
    """Bytes that a `BlockReader` of these blocks takes."""
    largest = max((_lay_out(block).nbytes for block in blocks), default=0)
    return min(_BUFFERS, len(blocks)) * (largest + ALIGNMENT)


class BlockReader:
    """Reads blocks of tensors in a circle, past the page cache, ahead of whoever takes them one after the other.

    Each block always stands in the same buffer at the same addresses, so that arrays over it are made once. What they
    show is the block's own only between `take` and `give_back`.

    Parameters
    ----------
    source : FolderSource
        Open, with its headers checked; it may be closed afterwards.
    blocks : sequence of sequence of TensorInfo
        Not empty; each tensor stands at a multiple of its element size.
    cached : bool
        Read through the page cache: for files that fit into it as a whole.

    Raises
    ------
    ResourceError
        Not enough memory for the buffers.
    InputError
        A file is not what it was.

    Attributes
    ----------
    lock : RLock
        For threads that share it, from `take` to `give_back`.
    nbytes : int
        Bytes of all blocks: what is read in one turn.
    bytes_read : int
        So far.
    """

    def __init__(
        self,
        source: FolderSource,
        blocks: Sequence[Sequence[TensorInfo]],
        *,
        cached: bool = False,
    ) -> None:
        self._infos = {info.name: (number, info) for number, block in enumerate(blocks) for info in block}
        self._layouts = [_lay_out(block) for block in blocks]
        self._buffers = _make_buffers(max(layout.nbytes for layout in self._layouts), min(_BUFFERS, len(blocks)))
        self._reads: dict[int, list[Future[None]]] = {}
        self._files: dict[str, DirectFile] = {}
        self.lock = threading.RLock()
        self._pool = DaemonPool(REQUESTS, "llmq-blocks")
        tell_of_forks(self)
        self.nbytes = sum(extent.stop - extent.start for layout in self._layouts for extent in layout.extents)
        self.bytes_read = 0
        try:
            for name in sorted({extent.file for layout in self._layouts for extent in layout.extents}):
                self._files[name] = DirectFile(source.duplicate(name), cached=cached)
        except BaseException:
            self.close()
            raise

    def __contains__(self, name: str) -> bool:
        """Whether a tensor is one of the blocks'."""
        return name in self._infos

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor's place in its buffer as a read-only array."""
        number, info = self._infos[name]
        place = self._layouts[number].places[name]
        view = self._buffer(number)[place : place + info.nbytes].view(NUMPY_DTYPES[info.dtype]).reshape(info.shape)
        view.flags.writeable = False
        return view

    def take(self, number: int) -> None:
        """Return once a block is in its buffer.

        Raises
        ------
        InputError
            It cannot be read, or its file became shorter.
        UsageError
            The reader was closed.
        """
        if not self._files:
            raise UsageError("the model was closed", hint="load it again")
        if number not in self._reads:
            self._restart(number)
        try:
            for read in self._reads[number]:
                read.result()
        except BaseException:
            self._stop_reading()
            raise
        self.bytes_read += sum(extent.stop - extent.start for extent in self._layouts[number].extents)

    def give_back(self, number: int) -> None:
        """Let a block's buffer be filled with the one that uses it next."""
        self._reads.pop(number, None)
        if not self._files:
            return
        slot, count = self._slot(number), len(self._layouts)
        following = ((number + step) % count for step in range(1, count + 1))
        self._read(next(n for n in following if self._slot(n) == slot))

    def after_fork(self) -> None:
        """Read anew what the parent was reading, which does not arrive in the child."""
        self.lock = threading.RLock()
        self._reads = {}

    def close(self) -> None:
        """Read nothing more, wait for what is being read, and close the files."""
        with self.lock:
            self._stop_reading()
            for file in self._files.values():
                file.close()
            self._files = {}
            self._pool.close()

    def _slot(self, number: int) -> int:
        return number % len(self._buffers)

    def _buffer(self, number: int) -> np.ndarray:
        return self._buffers[self._slot(number)]

    def _restart(self, number: int) -> None:
        """Begin anew at a block that is not the one after the last."""
        self._stop_reading()
        count = len(self._layouts)
        for step in range(min(len(self._buffers), count)):
            following = (number + step) % count
            if self._slot(following) not in {self._slot(n) for n in self._reads}:
                self._read(following)

    def _stop_reading(self) -> None:
        """Drop what is not yet being read, and wait for what is: buffers must not change afterwards."""
        for reads in self._reads.values():
            for read in reads:
                if not read.cancel():
                    read.exception()
        self._reads = {}

    def _read(self, number: int) -> None:
        reads = self._reads[number] = []  # known before the first, lest an interrupt lose some
        for extent in self._layouts[number].extents:
            for at in range(extent.start, extent.stop, PIECE):
                reads.append(self._pool.submit(self._fill, number, extent, at))  # noqa: PERF401

    def _fill(self, number: int, extent: _Extent, at: int) -> None:
        """Read a piece of an extent, from `at` in its file, to where it belongs."""
        count, place = min(PIECE, extent.stop - at), extent.place + at - extent.start
        room = self._buffer(number)[place : place + _aligned(count)].data
        try:
            done = self._files[extent.file].read(room, at, count)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=extent.file) from error
        if done < count:
            expected, found = at + count, at + done
            raise InputError("became shorter after it was opened", file=extent.file, expected=expected, found=found)


def _make_buffers(size: int, count: int) -> list[np.ndarray]:
    """Buffers of `size` bytes, at addresses that a disk can read to."""
    try:
        return [aligned_buffer(size) for _ in range(count)]
    except MemoryError:
        raise ResourceError(
            f"not enough memory for {count} buffers of {size} bytes", hint="a larger --max-memory streams less"
        ) from None
