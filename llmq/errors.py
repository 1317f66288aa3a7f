"""Errors a user can meet, each with the exit code of the command line.

LlmqError (1, unexpected)
├── UsageError (2, flags or arguments)
├── InputError (3, input bad or corrupt)
├── UnsupportedError (4, sound input that llmq cannot handle)
├── ResourceError (5, not enough disk or memory)
├── VerificationError (6, a check on a finished output failed)
├── NetworkError (7, the Hub or the network)
└── StoppedError (75, stopped but resumable)
"""

from __future__ import annotations

from typing import Any
from unicodedata import category

__all__ = [
    "InputError",
    "LlmqError",
    "NetworkError",
    "ResourceError",
    "StoppedError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
]


def printable(text: object) -> str:
    """Escape control and non-ASCII-printable characters, so that names from strangers cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def displayable(text: str) -> str:
    """Escape the characters by which a text steers a terminal, and leave all others, line ends too."""
    return "".join(
        c if c in "\n\t" or category(c) != "Cc" else c.encode("unicode_escape").decode("ascii") for c in text
    )


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class LlmqError(Exception):
    """An error with one clear line and, where one helps, a hint.

    Parameters
    ----------
    what : str
        What is wrong, in a few words.
    file, tensor : str, optional
        Where; each is put before `what`, followed by a colon.
    expected, found : object, optional
        Put behind `what` in parentheses.
    hint : str, optional
        The flag or command that mends it, printed on a line of its own.

    Attributes
    ----------
    what : str
        With `expected` and `found`, but not where; escaped for printing.
    file, tensor, hint : str or None
        As given.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        tensor: str | None = None,
        expected: Any = None,
        found: Any = None,
        hint: str | None = None,
    ) -> None:
        where = "".join(f"{printable(part)}: " for part in (file, tensor) if part is not None)
        pairs = [("expected", expected), ("found", found)]
        details = ", ".join(f"{word} {printable(value)}" for word, value in pairs if value is not None)
        self.what = printable(what) + (f" ({details})" if details else "")
        super().__init__(where + self.what)
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.hint = hint


class UsageError(LlmqError):
    """Flags or arguments that make no sense, or not together."""

    exit_code = 2


class InputError(LlmqError):
    """A file that is missing, malformed, truncated or inconsistent."""

    exit_code = 3


class UnsupportedError(LlmqError):
    """Sound input of a kind that llmq does not handle."""

    exit_code = 4


class ResourceError(LlmqError):
    """Not enough disk or memory."""

    exit_code = 5


class VerificationError(LlmqError):
    """A check on a finished output failed."""

    exit_code = 6


class NetworkError(LlmqError):
    """The Hub could not be reached, or refused."""

    exit_code = 7


class StoppedError(LlmqError):
    """The run was stopped; the same command goes on where it stopped."""

    exit_code = 75
