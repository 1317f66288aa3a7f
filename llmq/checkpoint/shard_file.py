"""One shard while it is written: tensors grow at their planned offsets, checksums grow along."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from llmq.system.files import preadv, preallocate, pwrite, sync_data, sync_file

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from llmq.checkpoint.layout import OutputTensor, ShardLayout

__all__ = ["ShardFile"]

_BLOCK: Final = 1 << 20
_WORTH_A_THREAD: Final = 1 << 18
_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class ShardFile:
    """An open shard of full size, its header written.

    Parameters
    ----------
    layout : ShardLayout
    path : Path
        A new file, or what an earlier run left of one.
    journalled : dict
        SHA-256 by name of the tensors that the earlier run finished; those whose bytes do not match start again.
    beside : Executor
        Where the checksum of the file is taken while that of the tensor is.

    Attributes
    ----------
    complete : set of str
        Tensors all of whose bytes are written, empty ones from the start.

    Raises
    ------
    OSError
        No room, above all: the whole shard is reserved at once.
    """

    def __init__(self, layout: ShardLayout, path: Path, journalled: dict[str, str], beside: Executor) -> None:
        self.layout = layout
        self.path = path
        self.complete = {tensor.name for tensor in layout.tensors if tensor.nbytes == 0}
        self._tensors = {tensor.name: tensor for tensor in layout.tensors}
        self._beside = beside
        self._hashes: dict[str, hashlib._Hash] = {}
        self._written: dict[str, int] = {}
        self._file_hash = hashlib.sha256(layout.header)
        self._hashed = len(layout.header)
        self._next = 0  # the first tensor that may not be in the hash of the file yet
        self._fd = os.open(path, _FLAGS, 0o666)
        try:
            os.ftruncate(self._fd, min(os.fstat(self._fd).st_size, layout.size))
            preallocate(self._fd, layout.size)
            pwrite(self._fd, memoryview(layout.header), 0)
            for tensor in layout.tensors:
                if tensor.name in journalled and self._digest(tensor) == journalled[tensor.name]:
                    self.complete.add(tensor.name)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def is_complete(self) -> bool:
        """Whether every tensor is complete."""
        return len(self.complete) == len(self._tensors)

    def append(self, name: str, data: memoryview) -> str | None:
        """Write the next bytes of a tensor.

        Returns
        -------
        str or None
            The tensor's SHA-256 once it is complete.

        Raises
        ------
        ValueError
            More bytes than the tensor has.
        OSError
            The system could not write.
        """
        tensor = self._tensors[name]
        done = self._written.get(name, 0)
        if name in self.complete or done + len(data) > tensor.nbytes:
            raise ValueError(f"tensor {name!r} has only {tensor.nbytes} bytes")
        offset = self.layout.offsets[name] + done
        pwrite(self._fd, data, offset)
        grown = self._hashes.setdefault(name, hashlib.sha256())
        self._digest_both(grown, data, in_order=offset == self._hashed)
        self._written[name] = done + len(data)
        if self._written[name] < tensor.nbytes:
            return None
        self.complete.add(name)
        del self._hashes[name]
        self._hash_prefix()
        return grown.hexdigest()

    def _digest_both(self, tensor: hashlib._Hash, data: memoryview, *, in_order: bool) -> None:
        """Take `data` into the checksum of its tensor and, if the file's has come so far, into that one."""
        beside = None
        if in_order and len(data) >= _WORTH_A_THREAD:
            beside = self._beside.submit(self._file_hash.update, data)
        tensor.update(data)
        if beside is not None:
            beside.result()
        elif in_order:
            self._file_hash.update(data)
        if in_order:
            self._hashed += len(data)

    def seal(self) -> str:
        """Put the complete shard on the disk and close it; returns the SHA-256 of the file."""
        assert self.is_complete
        self._hash_prefix()
        assert self._hashed == self.layout.size
        sync_file(self._fd)
        self.close()
        return self._file_hash.hexdigest()

    def sync(self) -> None:
        """Return once what was written so far is on the disk."""
        sync_data(self._fd)

    def close(self) -> None:
        """Close the file, whatever its state."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _hash_prefix(self) -> None:
        """Let the hash of the file catch up with the tensors complete so far, while their bytes are still cached."""
        tensors = self.layout.tensors
        while self._next < len(tensors) and tensors[self._next].name in self.complete:
            end = self.layout.offsets[tensors[self._next].name] + tensors[self._next].nbytes
            self._hash_range(self._file_hash, self._hashed, end)
            self._hashed = end
            self._next += 1

    def _digest(self, tensor: OutputTensor) -> str:
        start = self.layout.offsets[tensor.name]
        found = hashlib.sha256()
        self._hash_range(found, start, start + tensor.nbytes)
        return found.hexdigest()

    def _hash_range(self, target: hashlib._Hash, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(_BLOCK, end - start)))
        while start < end:
            count = preadv(self._fd, buffer[: min(_BLOCK, end - start)], start)
            assert count, "the file has its full size"
            target.update(buffer[:count])
            start += count
