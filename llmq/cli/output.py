"""Results on stdout: one JSON object, or text and tables for people."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from llmq.checkpoint.json_strict import without_infinity
from llmq.errors import UsageError, displayable, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SCHEMA", "print_json", "print_piece", "print_table", "stdin"]

SCHEMA: Final = 1
"""Version of the objects that `--json` prints."""

_WIDE: Final = 200


def print_json(result: dict[str, Any]) -> None:
    """Print the one object of `--json`; infinities and NaN, which JSON does not have, become null."""
    click.echo(json.dumps(without_infinity({"schema": SCHEMA} | result), indent=2, allow_nan=False))


def print_piece(text: str) -> None:
    """Print a piece of text at once, without a line's end; on a terminal, with the characters escaped that steer it."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(displayable(text) if on_terminal else text, nl=False)
    if sys.stdout is not None:
        sys.stdout.flush()


def stdin() -> TextIO:
    """Standard input; UsageError where it is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="give a prompt, or pipe one in")
    return sys.stdin


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings; a column whose heading ends in `>` is set flush right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        right = heading.endswith(">")
        table.add_column(heading.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    # No trailing blanks where a file or another program reads it.
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
