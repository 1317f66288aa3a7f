"""`DaemonPool`: threads that carry out what is submitted, and that nobody waits for in the end."""

from __future__ import annotations

import queue
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonPool"]

_Found = TypeVar("_Found")


class DaemonPool:
    """A `ThreadPoolExecutor` whose threads never hold up the end of the process: a dead line or disk cannot hang it.

    Parameters
    ----------
    count : int
        Threads.
    name : str
        Of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=_run, args=(self._jobs,), name=name, daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end, self._jobs, count)
        self._end.atexit = False

    def submit(self, work: Callable[..., _Found], *arguments: object) -> Future[_Found]:
        """Call `work` in one of the threads, in the order of submission. Raises RuntimeError once closed."""
        if not self._end.alive:
            raise RuntimeError("the pool is closed")
        future: Future[_Found] = Future()
        self._jobs.put((future, work, arguments))
        return future

    def close(self) -> None:
        """Let every thread end when it has done what was submitted; the same happens once nobody holds the pool."""
        self._end()


def _end(jobs: queue.SimpleQueue[Any], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _run(jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]) -> None:
    # Not a method: a running thread must not keep its pool alive.
    while (job := jobs.get()) is not None:
        future, work, arguments = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del job, future, work, arguments
