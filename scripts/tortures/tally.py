"""What a section of `make torture` counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass(frozen=True)
class Tally:
    """One row of the table.

    Parameters
    ----------
    what : str
        What was tried.
    runs : int
        How often.
    wrong : int
        How often it ended in a way that must not be; 0 is a pass.
    detail : str
        Further counts, or the first thing that was wrong.
    """

    what: str
    runs: int
    wrong: int
    detail: str = ""
