"""Measure on the sample model what 8-bit activations and caches cost, and write the table into docs/evaluation.md.

python scripts/update_evaluation.py [--folder demo] [--max-tokens N]

Takes some minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.benchmarks.child import llmq
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parents[1] / "docs" / "evaluation.md"
SECTION: Final = "activations"
BITS: Final = (8, 4, 3, 2)
HEADINGS: Final = (
    "weights",
    "activations",
    "cache",
    "perplexity",
    "KL from the same weights in float32",
    "p99",
    "same top token",
    "KL from the original",
)

_RUNS: Final = (("float32", ()), ("int8", ()), ("int8", ("--kv-bits", "8")), ("int8", ("--kv-bits", "4")))
"""Activations, and flags of the cache; float32 has a cache of 32 bits and int8 one of 16 unless flags say more."""


@dataclass(frozen=True)
class Row:
    """How a model with some weights predicts the text.

    Parameters
    ----------
    weights : str
        Their width in words.
    alone : dict
        What `llmq eval` found with the same weights, in float32, as the base.
    whole : dict
        The same with the original model as the base.
    """

    weights: str
    alone: dict[str, Any]
    whole: dict[str, Any]


def measure(folder: Path, max_tokens: int | None) -> Iterator[Row]:
    """Score the held-out text with every width of weights, in each way to compute."""
    original = folder / "sample"
    text = Path(llmq("sample", original)["text"])
    limit = () if max_tokens is None else ("--max-tokens", max_tokens)
    for name, model in _models(original, folder):
        for compute, flags in _RUNS:
            click.echo(f"{name} weights, {compute} activations {' '.join(flags)}", err=True)
            alone, whole = (
                llmq("eval", model, "--text", text, "--base", base, "--compute", compute, *flags, *limit)
                for base in (model, original)
            )
            yield Row(name, alone, whole)


def _models(original: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    yield "bfloat16", original
    for bits in BITS:
        output = folder / f"sample-{bits}bit"
        llmq("quantize", original, "-o", output, "--bits", bits, "--overwrite")
        yield f"{bits} bits", output


def cells(row: Row) -> tuple[str, ...]:
    """Words of a line of the table, under `HEADINGS`."""
    found = row.alone
    exact = found["compute"] == "float32"
    return (
        row.weights,
        found["compute"],
        f"{found['kv_bits']} bits",
        f"{found['perplexity']:.3f}",
        "-" if exact else f"{found['kl_mean']:.6f}",
        "-" if exact else f"{found['kl_p99']:.5f}",
        "-" if exact else f"{100 * found['top1_agreement']:.2f} %",
        f"{row.whole['kl_mean']:.6f}",
    )


def content(rows: list[Row]) -> str:
    """The table, and how it was measured."""
    first = rows[0].alone
    protocol = first["protocol"].rpartition(", ")[0]
    return (
        f"{table(HEADINGS, [cells(row) for row in rows])}\n\n"
        f"{first['tokens']:,} scored tokens of the sample's held-out text: {protocol}. Divergences in nats, means over "
        "positions; p99 is the 99th percentile."
    )


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where models go.")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Use the first N tokens of the text only.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=PAGE, help="The page to write.")
def main(folder: Path, max_tokens: int | None, page: Path) -> None:
    """Measure what `--compute int8` and `--kv-bits` cost on the sample, and write it into the page."""
    made = content(list(measure(folder, max_tokens)))
    page.write_text(put(page.read_text(encoding="utf-8"), SECTION, made), encoding="utf-8")


if __name__ == "__main__":
    main()
