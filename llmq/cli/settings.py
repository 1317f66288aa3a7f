"""What the flags before a command set: how much is said on stderr."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from llmq.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Settings", "say", "set_writer", "settings", "shown_log"]


@dataclass(frozen=True)
class Settings:
    """Flags before the command.

    Parameters
    ----------
    quiet : bool
        Neither progress nor notices; warnings and errors only.
    verbose : bool
        Details too.
    """

    quiet: bool = False
    verbose: bool = False

    @property
    def level(self) -> int:
        """The lowest level of logging that is shown."""
        if self.quiet:
            return logging.WARNING
        return logging.DEBUG if self.verbose else logging.INFO


def settings() -> Settings:
    """Return the settings of the command that runs."""
    context = click.get_current_context(silent=True)
    found = context.find_object(Settings) if context else None
    return found or Settings()


def _write_line(line: str) -> None:
    click.echo(line, err=True)


_write: Callable[[str], None] = _write_line


def set_writer(write: Callable[[str], None] | None) -> None:
    """Send lines for stderr through `write` while something is drawn there; None ends that."""
    global _write  # noqa: PLW0603
    _write = write or _write_line


def say(line: str) -> None:
    """Write a line to stderr, above whatever is drawn there."""
    _write(line)


class _StderrLines(logging.Handler):
    """Shows records as lines such as `warning: ...`; notices have no prefix."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        prefix = "" if record.levelno in (logging.INFO, logging.DEBUG) else f"{record.levelname.lower()}: "
        with contextlib.suppress(OSError):  # nobody reads stderr any more
            say(prefix + printable(record.getMessage()))


@contextlib.contextmanager
def shown_log(level: int) -> Iterator[None]:
    """Show what the library logs, from `level` up, within the block."""
    logger = logging.getLogger("llmq")
    handler, before = _StderrLines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
