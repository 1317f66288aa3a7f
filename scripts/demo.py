"""Shrink the sample model to 8, 4 and 2 bits, and show what becomes of it: what `make demo` runs.

Every step is the `llmq` command in a process of its own, so that the peak memory is that of the step.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from llmq.cli.output import print_table
from llmq.cli.sizes import format_size

PROMPT: Final = "It was a cold evening, and the old man"
WIDTHS: Final = (8, 4, 2)
TOKENS: Final = 60
SAMPLING: Final = ("--temp", "0.8", "--top-p", "0.95", "--seed", "5")


@dataclass(frozen=True)
class Row:
    """What was measured of one checkpoint."""

    name: str
    size: int
    evaluation: dict[str, Any]
    generation: dict[str, Any]

    def cells(self, original: Row) -> tuple[str, ...]:
        """Return the row of the table."""
        perplexity, base = self.evaluation["perplexity"], original.evaluation["perplexity"]
        kl = self.evaluation.get("kl_mean")
        return (
            self.name,
            format_size(self.size),
            f"{self.evaluation['bits_per_weight']:.2f}",
            f"{perplexity:.2f} ± {self.evaluation['perplexity_se']:.2f}",
            "" if self is original else f"{100 * (perplexity / base - 1):+.2f} %",
            "" if kl is None else f"{kl:.5f}",
            f"{self.generation['tokens_per_second']:.0f}",
            format_size(self.generation["peak_anon_bytes"]),
            format_size(self.generation["peak_rss_bytes"]),
        )


COLUMNS: Final = (
    "checkpoint",
    "size>",
    "bits/weight>",
    "perplexity>",
    "change>",
    "KL (nats)>",
    "tokens/s>",
    "peak anon>",
    "peak RSS>",
)


def llmq(*arguments: str) -> dict[str, Any]:
    """Run a command with `--json` and return its object; its progress is shown. Ends the demo if it fails."""
    click.secho("$ llmq " + " ".join(arguments), err=True, bold=True)
    run = subprocess.run([sys.executable, "-m", "llmq", *arguments, "--json"], stdout=subprocess.PIPE, check=False)
    if run.returncode:
        sys.exit(run.returncode)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def measure(name: str, folder: Path, text: Path, base: Path | None) -> Row:
    """Evaluate a checkpoint and let it write."""
    against = ["--base", str(base)] if base else []
    evaluation = llmq("eval", str(folder), "--text", str(text), *against)
    # The first run may compile kernels; what it writes is the same.
    prompt = [
        "generate",
        str(folder),
        "-p",
        PROMPT,
        "-m",
        str(TOKENS),
        "--temp",
        "0.8",
        "--top-p",
        "0.95",
        "--seed",
        "5",
    ]
    llmq(*prompt)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Row(name, size, evaluation, llmq(*prompt))


def markdown(rows: list[Row]) -> str:
    """The table for the README."""
    headings = [column.removesuffix(">") for column in COLUMNS]
    lines = ["| " + " | ".join(headings) + " |", "|" + "|".join(["---", *["---:"] * (len(headings) - 1)]) + "|"]
    lines += ["| " + " | ".join(row.cells(rows[0])) + " |" for row in rows]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option(
    "--markdown", "readme", type=click.Path(path_type=Path), help="Put the table into this file's demo section."
)
def main(folder: Path, readme: Path | None) -> None:
    """Shrink the sample model, evaluate it, and let it write."""
    began = time.perf_counter()
    original = folder / "sample"
    shutil.rmtree(original, ignore_errors=True)
    llmq("sample", str(original))
    text = original / "heldout.txt"
    rows = [measure("original (bf16)", original, text, None)]
    for bits in WIDTHS:
        output = folder / f"{bits}bit"
        llmq("quantize", str(original), "-o", str(output), "--bits", str(bits), "--overwrite")
        rows.append(measure(f"{bits} bits", output, text, original))
    click.echo()
    print_table(COLUMNS, [row.cells(rows[0]) for row in rows])
    click.echo(f"\nPerplexity and KL divergence on held-out text, {rows[0].evaluation['protocol']}.")
    click.echo(f"\nWhat they write after {PROMPT!r}:")
    for row in rows:
        written = " ".join(row.generation["text"].split())
        click.echo(f"\n{row.name}")
        click.echo(textwrap.fill(written, 100, initial_indent="    ", subsequent_indent="    "))
    if readme:
        put(readme, markdown(rows))
    click.echo(f"\n{time.perf_counter() - began:.0f} s; the checkpoints are in {folder}")


def put(readme: Path, table: str) -> None:
    """Replace what stands between the markers `<!-- demo:begin -->` and `<!-- demo:end -->`."""
    before, rest = readme.read_text(encoding="utf-8").split("<!-- demo:begin -->\n")
    _, after = rest.split("<!-- demo:end -->")
    readme.write_text(f"{before}<!-- demo:begin -->\n{table}<!-- demo:end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
