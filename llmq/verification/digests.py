"""Checksums of a file and of the tensors in it, in one pass; NaN and infinity on the way."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.checkpoint.dtypes import FLOATS, NUMPY_DTYPES
from llmq.checkpoint.faults import unreadable
from llmq.errors import InputError
from llmq.system.files import preadv
from llmq_kernels.nonfinite import count_nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.header import Header, TensorInfo
    from llmq.system.progress import Progress

__all__ = ["TensorDigest", "digest_file", "digest_shard"]

_PIECE: Final = 4 << 20
_WORTH_A_THREAD: Final = 1 << 18


@dataclass(frozen=True)
class TensorDigest:
    """What one pass over a tensor tells.

    Parameters
    ----------
    sha256 : str
        In hexadecimal.
    nan, infinite : int
        How many there are, in floats of 16 bits and more.
    """

    sha256: str
    nan: int
    infinite: int


def digest_file(fd: int, name: str, size: int, progress: Progress) -> str:
    """SHA-256 of the first `size` bytes of an open file. Raises InputError, naming `name`, where it is cut short."""
    found = hashlib.sha256()
    for piece in _pieces(fd, name, 0, size):
        found.update(piece.data)
        progress.advance(piece.size)
    return found.hexdigest()


def digest_shard(fd: int, name: str, header: Header, progress: Progress) -> tuple[str, dict[str, TensorDigest]]:
    """SHA-256 of an open shard, and what there is to say of each of its tensors.

    Parameters
    ----------
    fd : int
        Open for reading.
    name : str
        Named in errors.
    header : Header
        Its own: the tensors follow each other without holes up to the end of the file.
    progress : Progress
        Told of bytes.

    Raises
    ------
    InputError
        The file cannot be read, or became shorter.
    ResourceError
        Memory ran out.
    """
    whole = hashlib.sha256()
    for piece in _pieces(fd, name, 0, header.data_start):
        whole.update(piece.data)
        progress.advance(piece.size)
    with ThreadPoolExecutor(1, thread_name_prefix="llmq-verify") as beside:
        tensors = {info.name: _digest_tensor(fd, name, info, whole, beside, progress) for info in header.tensors}
    return whole.hexdigest(), tensors


def _digest_tensor(
    fd: int, name: str, info: TensorInfo, whole: hashlib._Hash, beside: ThreadPoolExecutor, progress: Progress
) -> TensorDigest:
    own, odd = hashlib.sha256(), np.zeros(2, np.int64)
    for piece in _pieces(fd, name, info.offset, info.nbytes):
        # Both take as long; the next piece must not be read before they are done.
        other = beside.submit(whole.update, piece.data) if piece.size >= _WORTH_A_THREAD else None
        own.update(piece.data)
        if info.dtype in FLOATS:
            odd += count_nonfinite(piece.view(NUMPY_DTYPES[info.dtype]))
        if other is None:
            whole.update(piece.data)
        else:
            other.result()
        progress.advance(piece.size)
    return TensorDigest(own.hexdigest(), *odd.tolist())


def _pieces(fd: int, name: str, start: int, count: int) -> Iterator[np.ndarray]:
    """Bytes of a file in pieces, uint8 (n,), all in the same memory."""
    buffer = np.empty(min(_PIECE, count), np.uint8)
    for place in range(start, start + count, _PIECE):
        piece = buffer[: min(_PIECE, start + count - place)]
        try:
            done = preadv(fd, piece.data, place)
        except OSError as error:
            raise unreadable(error, name) from error
        if done < piece.size:
            raise InputError("became shorter while it was read", file=name)
        yield piece
