"""Try to break every promise of docs/reliability.md, over and over, and count.

python scripts/torture.py --only faults
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from llmq.system.files import atomic_write
from tortures.shim import NoShimError
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECTIONS: Final = {
    "faults": "a fault at every call of the system",
    "power": "power lost after every step of a run",
    "kills": "SIGKILL at random times",
    "interrupts": "Ctrl-C, SIGTERM and SIGHUP at random times",
    "room": "disks and files that are too small",
    "memory": "too little memory",
    "writers": "several processes at one output",
    "flips": "bits of an output flipped",
    "hostile": "malformed checkpoints",
    "fuzz": "parsers fuzzed",
    "identical": "the same bytes whatever the threads, layers and memory",
}
"""Modules of the package `tortures`, with what each does."""

_BEGIN: Final = "<!-- torture:begin -->"
_END: Final = "<!-- torture:end -->"


def run_section(name: str, scratch: Path, *, quick: bool) -> tuple[list[Tally], float]:
    """Run one section in a folder of its own: its rows, and the seconds it took.

    Raises
    ------
    NoShimError
        It needs a C compiler.
    """
    began = time.monotonic()
    folder = scratch / name
    folder.mkdir()
    tallies = section(name)(folder, quick=quick, tell=lambda line: click.echo(f"  {line}", err=True))
    return tallies, time.monotonic() - began


def section(name: str) -> Callable[..., list[Tally]]:
    """The function `run` of a section's module."""
    run: Callable[..., list[Tally]] = importlib.import_module(f"tortures.{name}").run
    return run


def read_counts(path: Path) -> dict[str, Sequence[Tally]]:
    """Rows of sections that ran before; none where there is no such file."""
    if not path.exists():
        return {}
    return {name: [Tally(**row) for row in rows] for name, rows in json.loads(path.read_text("utf-8")).items()}


def as_text(tallies: dict[str, Sequence[Tally]]) -> str:
    """The rows of all sections as JSON."""
    return json.dumps({name: [asdict(row) for row in rows] for name, rows in tallies.items()}, indent=2)


def table(tallies: dict[str, Sequence[Tally]]) -> str:
    """The rows of all sections as a Markdown table."""
    lines = ["| section | what | runs | wrong | |", "|---|---|--:|--:|---|"]
    for section, rows in tallies.items():
        lines += [f"| {section} | {row.what} | {row.runs:,} | {row.wrong} | {_cell(row.detail)} |" for row in rows]
    total, wrong = (sum(getattr(row, name) for rows in tallies.values() for row in rows) for name in ("runs", "wrong"))
    return "\n".join([*lines, f"| all | | {total:,} | {wrong} | |"])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def put_between(path: Path, text: str) -> None:
    """Replace what a file holds between the markers.

    Raises
    ------
    click.ClickException
        It has no markers.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise click.ClickException(f"{path}: no {_BEGIN} and {_END}")
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="A section; repeatable.")
@click.option("--quick", is_flag=True, help="A sample of each section, as `make test` takes it.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for outputs.  [default: a temporary one]")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Put the table between the markers of a file.",
)
@click.option(
    "--counts",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the counts there, section by section; tables show all that it holds, those of earlier runs too.",
)
def main(
    only: tuple[str, ...],
    quick: bool,
    scratch: Path | None,
    as_json: bool,
    markdown: Path | None,
    counts: Path | None,
) -> None:
    """Run the sections and print their counts; exits with 1 if anything was wrong."""
    tallies = read_counts(counts) if counts else {}
    with tempfile.TemporaryDirectory(prefix="llmq-torture-", dir=scratch) as folder:
        for name in only or SECTIONS:
            click.echo(f"{name}: {SECTIONS[name]}", err=True)
            try:
                tallies[name], seconds = run_section(name, Path(folder), quick=quick)
            except NoShimError as error:
                click.echo(f"error: {error}", err=True)
                sys.exit(1)
            click.echo(f"{name}: {seconds:.0f} s", err=True)
            if counts:
                atomic_write(counts, as_text(tallies).encode())
    tallies = {name: tallies[name] for name in SECTIONS if name in tallies}
    if as_json:
        click.echo(as_text(tallies))
    else:
        click.echo(table(tallies))
    if markdown:
        put_between(markdown, table(tallies))
    if any(row.wrong for rows in tallies.values() for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
