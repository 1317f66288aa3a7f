"""Tensors as views of the memory-mapped files: nothing is read before it is used, nothing is held twice."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.errors import InputError, ResourceError
from llmq.system.direct import PIECE, REQUESTS
from llmq.system.memory import lock_memory
from llmq.system.pool import DaemonPool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import FolderSource

__all__ = ["MappedCheckpoint"]

_PACKED: Final = frozenset({"I32", "U32"})

_own = threading.local()


class MappedCheckpoint:
    """Read-only arrays over the files of a source.

    Files are mapped read-only: a private writable map of a file larger than memory would be refused. The arrays keep
    their map alive, also after `source` is closed.

    Parameters
    ----------
    source : FolderSource
        Open, with its headers checked.
    """

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self._files: dict[str, np.ndarray] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor, read-only.

        A float tensor that does not stand at a multiple of its element size is copied. Packed codes (I32, U32) never
        are: theirs may be an unaligned array.

        Raises
        ------
        KeyError
            No such tensor.
        InputError
            The file is shorter than when it was opened, or cannot be mapped.
        """
        info = self.source.tensors[name]
        view = self.bytes_of(name).view(NUMPY_DTYPES[info.dtype]).reshape(info.shape)
        if not view.flags.aligned and info.dtype not in _PACKED:
            view = view.copy()
            view.flags.writeable = False
        return view

    def bytes_of(self, name: str) -> np.ndarray:
        """Return the bytes of a tensor, uint8 (nbytes,), never copied."""
        info: TensorInfo = self.source.tensors[name]
        if info.file not in self._files:
            self._files[info.file] = self._map(info.file)
        return self._files[info.file][info.offset : info.offset + info.nbytes]

    def release(self) -> None:
        """Give the memory of all pages back to the system: arrays stay valid, and are read again where they are used.

        Does nothing where the system cannot be told.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                with contextlib.suppress(OSError):  # some of it is locked
                    mapped.madvise(mmap.MADV_DONTNEED)

    def expect(self, names: Collection[str]) -> None:
        """Have the system begin to read tensors that will be used soon, without waiting for them."""
        self._advise(names, "MADV_WILLNEED")

    def forget(self, names: Collection[str]) -> None:
        """Give the memory of some tensors back, as `release` does for all; pages that others share stay."""
        self._advise(names, "MADV_DONTNEED", inside=True)

    def _advise(self, names: Collection[str], advice: str, *, inside: bool = False) -> None:
        """Tell the system something of the pages that tensors touch, or of those wholly `inside` them."""
        if not hasattr(mmap, advice):
            return
        for name in names:
            info = self.source.tensors[name]
            if info.file not in self._maps:
                continue
            start, stop = info.offset // mmap.PAGESIZE * mmap.PAGESIZE, info.offset + info.nbytes
            if inside:
                start, stop = -(-info.offset // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
            if start < stop:
                self._maps[info.file].madvise(getattr(mmap, advice), start, stop - start)

    def populate(self, names: Collection[str]) -> None:
        """Bring tensors into the page cache now, several requests at a time, rather than page by page when used.

        Raises
        ------
        InputError
            A file cannot be read.
        """
        pool = DaemonPool(REQUESTS, "llmq-populate")
        try:
            reads = [pool.submit(self._touch, *piece) for name in names for piece in self._pieces(name)]
            try:
                for read in reads:
                    read.result()
            finally:
                for read in reads:
                    read.cancel()
        finally:
            pool.close()

    def _pieces(self, name: str) -> Iterator[tuple[TensorInfo, int, int]]:
        info = self.source.tensors[name]
        for start in range(0, info.nbytes, PIECE):
            yield info, start, min(PIECE, info.nbytes - start)

    def _touch(self, info: TensorInfo, start: int, count: int) -> None:
        """Read through the page cache, which is many times quicker than faulting, to a place that is thrown away."""
        if not hasattr(_own, "room"):
            _own.room = memoryview(bytearray(PIECE))
        self.source.read_into(info, start, _own.room[:count])

    def lock(self, names: Collection[str]) -> None:
        """Keep tensors in memory: the system must not drop their pages.

        Raises
        ------
        ResourceError
            The system does not allow so much, or cannot do it.
        """
        for name in names:
            array = self.bytes_of(name)
            try:
                lock_memory(array.ctypes.data, array.size)
            except OSError as error:
                hint = "raise the limit (ulimit -l), or run without --mlock"
                raise ResourceError(f"cannot be locked in memory: {error.strerror}", tensor=name, hint=hint) from None

    def _map(self, file: str) -> np.ndarray:
        expected = max(info.offset + info.nbytes for info in self.source.tensors.values() if info.file == file)
        fd = self.source.duplicate(file)
        try:
            size = os.fstat(fd).st_size
            if size < expected:
                raise InputError("became shorter after it was opened", file=file, expected=expected, found=size)
            # A map past the end of a file kills the process where it is touched.
            mapped = mmap.mmap(fd, expected, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot be mapped: {error.strerror}", file=file) from error
        finally:
            os.close(fd)
        self._maps[file] = mapped
        return np.frombuffer(mapped, dtype=np.uint8)
