"""What a writer has done beside it: checksums, and bringing bytes to the disk while more are made."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["Flusher"]

_START_BYTES: Final = 32 << 20
_SECONDS: Final = 5.0


class Flusher:
    """Syncs files on a thread of its own, again and again, so that the disk is busy from the start.

    Parameters
    ----------
    sync : callable
        Returns once everything written so far is on the disk; called on the thread, never twice at a time.
    most : int
        Bytes that may be written without being on the disk: beyond, `wrote` waits.
    """

    def __init__(self, sync: Callable[[], None], most: int) -> None:
        self._sync = sync
        self._most = most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="llmq-sync")
        self._running: Future[None] | None = None
        self._unsynced = 0
        self._started_at = time.monotonic()

    def wrote(self, nbytes: int) -> None:
        """Count bytes as written; raises what an earlier sync raised."""
        self._unsynced += nbytes
        if self._running is not None and (self._running.done() or self._unsynced >= self._most):
            self.settle()
        now = time.monotonic()
        due = self._unsynced >= min(_START_BYTES, self._most) or now - self._started_at >= _SECONDS
        if self._running is None and due:
            self._unsynced = 0
            self._started_at = now
            self._running = self._pool.submit(self._sync)

    def settle(self) -> None:
        """Wait for the sync that is running, if one is; raises what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, whatever a sync that is running raises, and end the thread."""
        running, self._running = self._running, None
        if running is not None:
            wait([running])
        self._pool.shutdown()
