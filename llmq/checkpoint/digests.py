"""SHA-256 of what is written: once for its tensor and once for its file, both at a time where the CPU can."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

import numpy as np

__all__ = ["Digest", "new_digest", "update_both"]

_LARGE: Final = 64 << 20
"""Bytes from which a stream is worth the import of our kernels."""

_BLOCK: Final = 64


class Digest(Protocol):
    """A checksum that grows, as those of `hashlib`."""

    def update(self, data: memoryview, /) -> None:
        """Take in the next bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far."""
        ...


class _Sha256:
    """A stream hashed by our kernel, which can take two of them at a time."""

    def __init__(self) -> None:
        from llmq_kernels.sha256 import START

        self.state = np.array(START, np.uint32)
        self._rest = bytearray()  # less than a block
        self._length = 0

    def update(self, data: memoryview, /) -> None:
        """Take in the next bytes, contiguous."""
        _hash((self, np.frombuffer(data, np.uint8)))

    def hexdigest(self) -> str:
        """Return the checksum of all bytes so far."""
        from llmq_kernels.sha256 import ORDER

        last = _Sha256()
        last.state[:] = self.state
        padding = b"\x80" + bytes((_BLOCK - 9 - len(self._rest)) % _BLOCK) + (8 * self._length).to_bytes(8, "big")
        last.update(memoryview(bytes(self._rest) + padding))
        return bytes(last.state[np.argsort(ORDER)].astype(">u4")).hex()

    def take(self, data: np.ndarray) -> tuple[int, int, int]:
        """Count bytes uint8 (n,) as hashed, and return the whole blocks among them: (state, address, count)."""
        self._length += data.size
        missing = -len(self._rest) % _BLOCK
        if missing:
            self._rest += data[:missing].tobytes()
            data = data[missing:]
            if len(self._rest) < _BLOCK:
                return self.state.ctypes.data, 0, 0
            whole, self._rest = np.frombuffer(bytes(self._rest), np.uint8), bytearray()
            _run((self.state.ctypes.data, whole.ctypes.data, 1))
        count = data.size // _BLOCK
        self._rest += data[_BLOCK * count :].tobytes()
        return self.state.ctypes.data, data.ctypes.data, count


_NOTHING: Final = (0, 0, 0)


def _run(one: tuple[int, int, int], two: tuple[int, int, int] = _NOTHING) -> None:
    from llmq_kernels.sha256 import hash_blocks

    hash_blocks(one, two)


def _hash(*streams: tuple[_Sha256, np.ndarray]) -> None:
    _run(*(stream.take(data) for stream, data in streams))


def new_digest(nbytes: int) -> Digest:
    """Begin a checksum of a stream of so many bytes."""
    if nbytes < _LARGE:
        return hashlib.sha256()
    from llmq_kernels.jit import jit_enabled
    from llmq_kernels.sha256 import has_sha

    return _Sha256() if has_sha() and jit_enabled() else hashlib.sha256()


def update_both(one: Digest, two: Digest, data: memoryview) -> bool:
    """Take the same bytes into two checksums at a time; returns whether that could be done."""
    if not (isinstance(one, _Sha256) and isinstance(two, _Sha256)):
        return False
    array = np.frombuffer(data, np.uint8)
    _hash((one, array), (two, array))
    return True
