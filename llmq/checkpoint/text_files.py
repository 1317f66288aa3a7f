"""Reading a text that a user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_utf8"]


def read_utf8(path: Path) -> str:
    """Read a text file as UTF-8. Raises InputError where it cannot be read, or is something else."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason} at byte {error.start}", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
