"""What stops a command: Ctrl-C, SIGTERM of schedulers, and SIGHUP of a terminal that is closed.

A KeyboardInterrupt at any place would do harm: in the middle of an import, extension modules abort, and what is raised
in a destructor is lost. So a run is asked to end behind its block, and interrupted anywhere only if that takes long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from llmq.system.progress import Progress

__all__ = ["interruptible", "stoppable"]

_NUMBERS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE: Final = 0.15
"""Seconds that a run has to finish its block."""

_IMPORT: Final = 0.05
_IMPORTS: Final = 10
"""How often an interrupt is put off by so many seconds since Python imports something; then the process ends."""

_SHOW_CURSOR: Final = b"\x1b[?25h"


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _imports(frame: FrameType | None) -> bool:
    """Whether Python is about to import something."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, but end the process at once while it imports something."""
    if not _is_main() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Stop:
    """Remembers that a signal came, and interrupts the main thread if it goes on for too long."""

    def __init__(self) -> None:
        self._asked = False
        self._number = 0
        self._put_off = 0

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a first signal; a second one will end the process, wherever it is."""
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_DFL)
        if sys.stderr is not None and sys.stderr.isatty():
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)  # hidden beside a bar
        self._asked, self._number = True, number
        if not hasattr(signal, "setitimer"):
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def insist(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle the alarm: interrupt."""
        if not _imports(frame):
            raise KeyboardInterrupt
        self._put_off += 1
        if self._put_off > _IMPORTS:
            signal.raise_signal(self._number)
        signal.setitimer(signal.ITIMER_REAL, _IMPORT)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt


class _StoppableProgress:
    """A progress that ends the work it is told of."""

    def __init__(self, shown: Progress, stop: _Stop) -> None:
        self._shown = shown
        self._stop = stop

    def start(self, title: str, total: int, unit: str = "bytes") -> None:
        """See `Progress.start`."""
        self._stop.check()
        self._shown.start(title, total, unit)

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        self._shown.advance(count)
        self._stop.check()

    def finish(self) -> None:
        """See `Progress.finish`."""
        self._shown.finish()


@contextlib.contextmanager
def stoppable(progress: Progress) -> Iterator[Progress]:
    """Let each of the signals, unless it is ignored, raise KeyboardInterrupt once, behind a block where possible.

    Yields a progress that passes on to `progress`. Another signal ends the process at once.
    """
    if not _is_main():
        yield progress
        return
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    heard = [number for number in _NUMBERS if before[number] != signal.SIG_IGN]
    alarm = getattr(signal, "SIGALRM", None)
    if alarm is not None:
        before[alarm] = signal.signal(alarm, stop.insist)
    for number in heard:
        signal.signal(number, stop.ask)
    try:
        yield _StoppableProgress(progress, stop)
    finally:
        if alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
