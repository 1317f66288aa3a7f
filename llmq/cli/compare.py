"""`llmq compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, report_option, threads_option
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.evaluate.compare import Comparison
    from llmq.report import Measures

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("outputs", metavar="OUT...", nargs=-1, required=True)
@threads_option
@report_option
@json_option
def command(
    source: str, outputs: tuple[str, ...], threads: int | None, report_file: Path | None, as_json: bool
) -> None:
    """Measure the error of every quantized tensor of OUT against SOURCE, which it was made from.

    Several outputs are compared one after the other; --report puts the errors of all against their sizes.

    NMSE is the sum of the squared error over the sum of the squared weights; SQNR is the same in decibels. Totals
    count quantized tensors only.
    """
    prepare_kernels(threads)
    from llmq.report import Measures, compare_contents, write_page

    measures = Measures() if report_file else None
    compared = [_compare(source, output, measures if i == 0 else None) for i, output in enumerate(outputs)]
    results = [found.to_json() | sizes for found, sizes, _ in compared]
    if report_file and measures is not None:
        write_page(report_file, compare_contents(source, results, compared[0][2], measures))
    if as_json:
        print_json(results[0] if len(results) == 1 else {"outputs": results})
        return
    for found, sizes, _ in compared:
        if len(compared) > 1:
            click.echo(f"{sizes['output']}:")
        _print(found)


def _compare(
    source: str, output: str, measures: Measures | None
) -> tuple[Comparison, dict[str, Any], dict[str, dict[str, Any]]]:
    """Errors, size, and what each weight is."""
    from llmq.checkpoint.source import open_source
    from llmq.evaluate.compare import compare
    from llmq.evaluate.inventory import inventory

    with open_source(source) as before, open_source(output) as after, show_progress() as progress:
        found = compare(before, after, progress=progress, watch=measures)
        held = inventory(after)
    described = {tensor["name"]: tensor for tensor in held.to_json()["tensors"]}
    sizes = {"output": output, "output_bytes": held.total_bytes, "bits_per_weight": held.bits_per_weight}
    return found, sizes, described


def _print(found: Comparison) -> None:
    changed = [t for t in found.tensors if not t.unchanged]
    if changed:
        rows = [
            (t.name, t.bits, f"{t.nmse:.3e}", f"{t.sqnr_db:.2f}", f"{t.cosine:.6f}", f"{t.max_error:.3e}")
            for t in changed
        ]
        print_table(["tensor", "bits>", "NMSE>", "SQNR dB>", "cosine>", "max error>"], rows)
        click.echo()
    click.echo(f"{len(found.tensors) - len(changed)} of {len(found.tensors)} tensors are unchanged, bit for bit")
    if found.quantized:
        count = len(found.quantized)
        click.echo(f"{count} quantized tensors: NMSE {found.nmse:.3e}, SQNR {found.sqnr_db:.2f} dB")
