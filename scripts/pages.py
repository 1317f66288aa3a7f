"""What scripts write into pages: tables, and content between the markers of a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["put", "table"]


def put(text: str, section: str, content: str) -> str:
    """Put content between the markers of a section of a page, instead of what stands there.

    Raises
    ------
    click.ClickException
        The page has no such markers.
    """
    begin, end = f"<!-- {section}:begin -->\n", f"<!-- {section}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise click.ClickException(f"the page has no section {section}")
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, padded so that it can be read as it is."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
