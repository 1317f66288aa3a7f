"""`MappedParts`: mapped tensors of which only those used lately stay in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmq.checkpoint.mapped import MappedCheckpoint

__all__ = ["MappedParts"]

_Key = TypeVar("_Key")


class MappedParts(Generic[_Key]):
    """Parts of a mapped checkpoint within a bound: what was not used for longest is given back to the system.

    Given back means out of this process: the page cache keeps it for as long as there is room.

    Parameters
    ----------
    mapped : MappedCheckpoint
    parts : mapping to sequence of str
        Names of the tensors of each part.
    limit : int
        Bytes of all parts in memory; the one in use is there in any case.
    """

    def __init__(self, mapped: MappedCheckpoint, parts: Mapping[_Key, Sequence[str]], limit: int) -> None:
        self._mapped = mapped
        self._parts = parts
        self._limit = limit
        sizes = mapped.source.tensors
        self._nbytes = {key: sum(sizes[name].nbytes for name in names) for key, names in parts.items()}
        self._used: OrderedDict[_Key, None] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0
        """Bytes of the parts that count as being in memory."""

    def use(self, key: _Key, following: _Key | None = None) -> None:
        """Say that a part is used now and, perhaps, which one after it: that one begins to be read."""
        with self._lock:
            self._enter(key)
            if following is not None and self.nbytes + self._nbytes[following] <= self._limit:
                self._enter(following)
            self._used.move_to_end(key)
            while self.nbytes > self._limit and len(self._used) > 1:
                oldest, _ = self._used.popitem(last=False)
                self._mapped.forget(self._parts[oldest])
                self.nbytes -= self._nbytes[oldest]

    def _enter(self, key: _Key) -> None:
        if key in self._used:
            self._used.move_to_end(key)
            return
        self._used[key] = None
        self.nbytes += self._nbytes[key]
        self._mapped.expect(self._parts[key])
