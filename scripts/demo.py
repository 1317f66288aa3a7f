"""Shrink the sample model to 8, 4 and 2 bits with the `llmq` command, measure each, and let each write.

python scripts/demo.py [--folder demo] [--markdown README.md]
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from llmq.cli.sizes import format_size

BITS: Final = (8, 4, 2)
PROMPT: Final = "It was a dark night, and"
TOKENS: Final = 60
HEADINGS: Final = ("model", "size", "bits/weight", "perplexity", "vs original", "KL (nats)", "tokens/s", "peak memory")
MARKERS: Final = ("<!-- demo:begin -->\n", "<!-- demo:end -->")


@dataclass(frozen=True)
class Row:
    """What was measured of one model."""

    name: str
    inspected: dict[str, Any]
    evaluated: dict[str, Any]
    generated: dict[str, Any]


def llmq(*arguments: str | Path) -> dict[str, Any]:
    """Run a command and return what it prints; its progress goes to our stderr. Exits if it fails."""
    words = [str(argument) for argument in arguments]
    click.echo(f"$ llmq {shlex.join(words)}")
    done = subprocess.run(
        [sys.executable, "-m", "llmq", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        sys.exit(f"demo: the command failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(name: str, model: Path, text: Path, base: Path | None) -> Row:
    """Inspect, evaluate and run one model."""
    against = ("--base", base) if base else ()
    return Row(
        name,
        llmq("inspect", model),
        llmq("eval", model, "--text", text, *against),
        llmq("generate", model, "-p", PROMPT, "-m", str(TOKENS), "--temp", "0.7", "--min-p", "0.05", "--seed", "1"),
    )


def cells(row: Row, original: Row) -> tuple[str, ...]:
    """Words of a line of the table, under `HEADINGS`."""
    scored, made = row.evaluated, row.generated
    change = scored["perplexity"] / original.evaluated["perplexity"] - 1
    return (
        row.name,
        format_size(row.inspected["total_bytes"]),
        f"{row.inspected['bits_per_weight']:.2f}",
        f"{scored['perplexity']:.2f}",
        "-" if row is original else f"{100 * change:+.2f} %",
        "-" if row is original else f"{scored['kl_mean']:.4f}",
        f"{made['tokens_per_second']:.0f}",
        format_size(made["peak_rss_bytes"]),
    )


def notes(original: Row) -> str:
    """What the figures of the table are."""
    scored = original.evaluated
    return (
        f"Perplexity on {scored['tokens']:,} tokens the model never saw: {scored['protocol']}. KL: divergence from the "
        "original's predictions. Peak memory: of the whole process while it writes, Python and tokenizer included."
    )


def show(rows: list[Row]) -> None:
    """Print the table and the texts."""
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    table = Table(title="The sample model, original and shrunk")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(*cells(row, rows[0]))
    console.print()
    console.print(table)
    console.print(notes(rows[0]))
    for row in rows:
        console.print(f"\n[bold]{row.name}[/bold]")
        console.print(PROMPT + row.generated["text"].rstrip(), markup=False)


def markdown(rows: list[Row]) -> str:
    """The table and the texts for a page."""
    lines = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *(cells(row, rows[0]) for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    texts = "".join(f"\n**{row.name}:** {' '.join((PROMPT + row.generated['text']).split())}\n" for row in rows)
    return f"\n{table}\n{notes(rows[0])}\n{texts}\n"


def put(page: Path, content: str) -> None:
    """Put text between the markers of a page, instead of what stands there."""
    begin, end = MARKERS
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}{content}{end}{after}", encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--folder", type=click.Path(path_type=Path), default="demo", show_default=True, help="Where models go.")
@click.option("--markdown", "page", type=click.Path(path_type=Path, exists=True), help="Put the result into this page.")
def main(folder: Path, page: Path | None) -> None:
    """Shrink the sample model to 8, 4 and 2 bits, measure each, and let each write."""
    began = time.perf_counter()
    source = folder / "sample"
    outputs = {bits: folder / f"{bits}bit" for bits in BITS}
    for earlier in (source, *outputs.values()):
        if earlier.exists():
            shutil.rmtree(earlier)
    llmq("doctor", "--warm")  # so that no figure below counts compiling
    text = Path(llmq("sample", source)["text"])
    for bits, output in outputs.items():
        llmq("quantize", source, "-o", output, "--bits", str(bits))
    rows = [measure("original", source, text, None)]
    rows += [measure(f"{bits} bits", output, text, source) for bits, output in outputs.items()]
    show(rows)
    if page is not None:
        put(page, markdown(rows))
    click.echo(f"\nAll of this took {time.perf_counter() - began:.0f} s; the models are in {folder}{os.sep}.")


if __name__ == "__main__":
    main()
