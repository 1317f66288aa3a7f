"""Shrink the sample model to 8, 4 and 2 bits with the `llmq` command, measure each, and let each write.

python scripts/demo.py [FOLDER]
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from llmq.cli.sizes import format_size

BITS: Final = (8, 4, 2)
PROMPT: Final = "It was a dark night, and"
TOKENS: Final = 60

console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


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
    print(f"$ llmq {' '.join(repr(word) if ' ' in word else word for word in words)}", flush=True)
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


def show(rows: list[Row]) -> None:
    """Print the table and the texts."""
    original = rows[0].evaluated["perplexity"]
    table = Table(title="The sample model, original and shrunk")
    for heading in (
        "model",
        "size",
        "bits/weight",
        "perplexity",
        "vs original",
        "KL (nats)",
        "tokens/s",
        "peak memory",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        scored, made = row.evaluated, row.generated
        is_original = "kl_mean" not in scored
        table.add_row(
            row.name,
            format_size(row.inspected["total_bytes"]),
            f"{row.inspected['bits_per_weight']:.2f}",
            f"{scored['perplexity']:.2f}",
            "-" if is_original else f"{100 * (scored['perplexity'] / original - 1):+.2f} %",
            "-" if is_original else f"{scored['kl_mean']:.4f}",
            f"{made['tokens_per_second']:.0f}",
            format_size(made["peak_rss_bytes"]),
        )
    console.print()
    console.print(table)
    scored = rows[0].evaluated
    console.print(f"Perplexity on {scored['tokens']:,} tokens the model never saw: {scored['protocol']}.")
    console.print("KL: divergence from the original's predictions. Peak memory: of the whole process, Python included.")
    for row in rows:
        console.print(f"\n[bold]{row.name}[/bold] goes on from {PROMPT!r}:")
        console.print(row.generated["text"].strip(), markup=False)


def main() -> None:
    """Run all steps."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
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
    rows += [measure(f"{bits}-bit", output, text, source) for bits, output in outputs.items()]
    show(rows)
    console.print(f"\nAll of this took {time.perf_counter() - began:.0f} s; the models are in {folder}/.")


if __name__ == "__main__":
    main()
