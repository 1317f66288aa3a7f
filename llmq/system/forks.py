"""What must be made anew in a forked child, where only the thread that forked goes on."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["Forked", "tell_of_forks"]


class Forked(Protocol):
    """An object with threads, or with locks that other threads may hold."""

    def after_fork(self) -> None:
        """Go on without the threads of the parent: called in the child, before anything else runs there."""
        ...


_told: Final[weakref.WeakSet[Forked]] = weakref.WeakSet()


def tell_of_forks(subject: Forked) -> None:
    """Call `subject.after_fork` in every child that this process forks, as long as somebody holds `subject`."""
    _told.add(subject)


def _tell() -> None:
    for subject in tuple(_told):
        subject.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
