"""How long work tells whoever waits for it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NullProgress", "Progress"]


class Progress(Protocol):
    """Told of work in stages that follow each other, each measured in bytes or in another unit."""

    def start(self, title: str, total: int, unit: str = "bytes") -> None:
        """Begin a stage of `total` units; one that was not finished ends."""
        ...

    def advance(self, count: int) -> None:
        """Count `count` more units as done. Cheap: call it for every block."""
        ...

    def finish(self) -> None:
        """End the stage."""
        ...


class NullProgress:
    """Tells nobody."""

    def start(self, title: str, total: int, unit: str = "bytes") -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""
