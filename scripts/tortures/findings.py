"""What a series of runs came to, gathered run by run."""

from __future__ import annotations

from collections import Counter

from tortures.tally import Tally

__all__ = ["Findings"]

_SHOWN = 3
_LONGEST = 400


class Findings:
    """Exit codes and complaints of a series of runs.

    Attributes
    ----------
    runs : int
    codes : Counter
        Runs by exit code.
    wrong : list of str
        What was wrong, by no more than one text a run.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.codes = Counter[int]()
        self.wrong: list[str] = []

    def add(self, code: int, complaint: str, label: str = "") -> None:
        """Count a run that ended with an exit code; a complaint, unless it is empty, makes it wrong."""
        self.runs += 1
        self.codes[code] += 1
        if complaint:
            self.wrong.append(f"{label or f'run {self.runs}'}: {complaint}"[:_LONGEST])

    def tally(self, what: str, detail: str) -> Tally:
        """The row for the table: detail, exit codes, and the first of what was wrong."""
        codes = ", ".join(f"{times}x {code}" for code, times in sorted(self.codes.items()))
        parts = [detail, f"exits {codes}" if codes else "", *self.wrong[:_SHOWN]]
        return Tally(what, self.runs, len(self.wrong), "; ".join(filter(None, parts)))
