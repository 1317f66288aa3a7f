"""What a lesson is: some sentences and tables, which the tour prints and a page shows."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pages import table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WIDTH", "Lesson", "Table", "number"]

WIDTH: Final = 78
"""Columns that a lesson may fill."""


@dataclass(frozen=True)
class Table:
    """Some rows of words under headings.

    Parameters
    ----------
    headings : sequence of str
    rows : sequence of sequences of str
    left : int
        So many of the first columns are words, and stand at the left; the others are numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def text(self) -> str:
        """For a terminal."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headings))]
        ruled = [self.headings, ["-" * width for width in widths], *self.rows]
        return "\n".join("  ".join(self._align(line, widths)).rstrip() for line in ruled)

    def markdown(self) -> str:
        """For a page."""
        return table(self.headings, self.rows)

    def _align(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        pairs = enumerate(zip(line, widths, strict=True))
        return [word.ljust(width) if i < self.left else word.rjust(width) for i, (word, width) in pairs]


@dataclass(frozen=True)
class Lesson:
    """One notion.

    Parameters
    ----------
    title : str
    says : str
        What the tables show; paragraphs are parted by empty lines, indented ones are left as they are.
    tables : dict of Table
        By the name of their section on the page.
    after : str
        What to see in them.
    """

    title: str
    says: str
    tables: dict[str, Table] = field(default_factory=dict)
    after: str = ""

    def text(self) -> str:
        """For a terminal of 80 columns."""
        parts = [_wrap(self.says), *(found.text() for found in self.tables.values()), _wrap(self.after)]
        return "\n\n".join(part for part in parts if part)


def _wrap(text: str) -> str:
    paragraphs = textwrap.dedent(text).strip("\n").split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else textwrap.fill(" ".join(p.split()), WIDTH) for p in paragraphs)


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and no needless ones.

    >>> [number(v) for v in (0.00012345, 0.12, 280.0, 72.1875, 3.4e38, 1e-45)]
    ['0.000123', '0.12', '280', '72.2', '3.40e+38', '1.00e-45']
    """
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
