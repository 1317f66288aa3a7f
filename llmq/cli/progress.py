"""How far a command is: bars on a terminal, a sober line now and then anywhere else. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Final

from llmq.cli.settings import say, set_writer, settings
from llmq.cli.sizes import format_size
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress as Bars

    from llmq.system.progress import Progress

__all__ = ["LineProgress", "TerminalProgress", "activity", "show_progress"]

_SOON_SECONDS: Final = 2.0
_LATE_SECONDS: Final = 10.0
_LATE: Final = 60.0


class LineProgress:
    """A line when a stage begins, every two seconds of its first minute, then every ten, and when it ends.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._title: str | None = None
        self._unit = ""
        self._total = self._done = 0
        self._began = self._told = 0.0

    def start(self, title: str, total: int, unit: str = "bytes") -> None:
        """See `Progress.start`."""
        self._title, self._unit, self._total, self._done = title, unit, total, 0
        self._began = self._told = self._clock()
        say(f"{title}: {_amount(total, unit)}")

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        self._done += count
        now = self._clock()
        pause = _SOON_SECONDS if now - self._began < _LATE else _LATE_SECONDS
        if self._title is None or now - self._told < pause:
            return
        self._told = now
        rate = self._done / (now - self._began)
        share = 100 * self._done // max(1, self._total)
        left = max(0, self._total - self._done) / rate if rate else 0.0
        say(f"{self._title}: {share} %, {_amount(rate, self._unit)}/s, {left:.0f} s left")

    def finish(self) -> None:
        """See `Progress.finish`."""
        if self._title is None:
            return
        seconds = self._clock() - self._began
        rate = self._done / max(seconds, 1e-9)
        say(f"{self._title}: done in {seconds:.1f} s ({_amount(rate, self._unit)}/s)")
        self._title = None


def _amount(count: float, unit: str) -> str:
    return format_size(count) if unit == "bytes" else f"{count:,.0f} {unit}"


class TerminalProgress:
    """A bar with amounts, rate and time left, redrawn ten times a second; a context manager.

    Parameters
    ----------
    console : rich Console
        Of stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None

    def start(self, title: str, total: int, unit: str = "bytes") -> None:
        """See `Progress.start`."""
        from rich import progress

        self.finish()
        amounts: list[progress.ProgressColumn] = (
            [progress.DownloadColumn(), progress.TransferSpeedColumn()]
            if unit == "bytes"
            else [progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit)]
        )
        self._bars = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *amounts,
            progress.TextColumn("left", style="dim"),
            progress.TimeRemainingColumn(),
            console=self._console,
        )
        self._bars.start()
        self._bars.add_task(title, total=total)
        set_writer(_writer(self._console))

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        if self._bars is not None:
            self._bars.advance(self._bars.task_ids[0], count)

    def finish(self) -> None:
        """See `Progress.finish`."""
        if self._bars is not None:
            self._bars.stop()
            set_writer(None)
            self._bars = None


def _writer(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Give a progress reporter that suits where stderr goes and what `-q` says; its last stage ends with the block."""
    if settings().quiet:
        yield NullProgress()
        return
    if not _is_terminal():
        yield LineProgress()
        return
    shown = TerminalProgress(_stderr_console())
    try:
        yield shown
    finally:
        shown.finish()


@contextlib.contextmanager
def activity(title: str) -> Iterator[Callable[[], None]]:
    """Show on a terminal that something without a measure goes on, until the block or the function it gives ends it.

    Nothing is shown anywhere else.
    """
    if settings().quiet or not _is_terminal():
        yield lambda: None
        return
    from rich import progress

    console = _stderr_console()
    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
    bars = progress.Progress(*columns, console=console, transient=True)

    def stop() -> None:
        bars.stop()
        set_writer(None)

    bars.add_task(title, total=None)
    bars.start()
    set_writer(_writer(console))
    try:
        yield stop
    finally:
        stop()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
