"""`DaemonPool`: threads that carry out what is submitted, and that nobody waits for in the end."""

from __future__ import annotations

import queue
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from llmq.system.forks import tell_of_forks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DaemonPool"]

_Found = TypeVar("_Found")
_Jobs: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]"


class DaemonPool:
    """A `ThreadPoolExecutor` whose threads never hold up the end of the process: a dead line or disk cannot hang it.

    A forked child has threads of its own. What was submitted before the fork is not done there, and never will be.

    Parameters
    ----------
    count : int
        Threads.
    name : str
        Of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: _Jobs = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._jobs, count)
        self._end.atexit = False
        tell_of_forks(self)

    def submit(self, work: Callable[..., _Found], *arguments: object) -> Future[_Found]:
        """Call `work` in one of the threads, in the order of submission. Raises RuntimeError once closed."""
        if not self._end.alive:
            raise RuntimeError("the pool is closed")
        with self._starting:
            if not self._threads:
                self._start()
        future: Future[_Found] = Future()
        self._jobs.put((future, work, arguments))
        return future

    def _start(self) -> None:
        for _ in range(self._count):
            thread = threading.Thread(target=_run, args=(self._jobs,), name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def after_fork(self) -> None:
        """Leave the threads and jobs of the parent to it."""
        closed = self._end.detach() is None
        self._jobs, self._starting, self._threads = queue.SimpleQueue(), threading.Lock(), []
        self._end = weakref.finalize(self, _end, self._jobs, self._count)
        self._end.atexit = False
        if closed:
            self._end()

    def close(self) -> None:
        """Let every thread end when it has done what was submitted; the same happens once nobody holds the pool."""
        self._end()


def _end(jobs: _Jobs, count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _run(jobs: _Jobs) -> None:
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
