"""`llmq compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, measures_for, report_option, save_option, threads_option
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmq.evaluate.compare import Comparison, TensorError
    from llmq.report import Measures

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("outputs", metavar="OUT...", nargs=-1, required=True)
@click.option(
    "--sort",
    type=click.Choice(["file", "name", "nmse", "max-error", "saturation"]),
    default="file",
    show_default=True,
    help="Order of the table: as in the files, by name, or the worst first.",
)
@click.option("--worst", type=click.IntRange(min=1), metavar="N", help="Show the N tensors with the largest NMSE only.")
@threads_option
@save_option
@report_option
@json_option
def command(
    source: str, outputs: tuple[str, ...], threads: int | None, report_file: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure the error of every quantized tensor of OUT against SOURCE, which it was made from.

    Several outputs are compared one after the other; --report puts the errors of all against their sizes.

    NMSE is the sum of the squared error over the sum of the squared weights; SQNR is the same in decibels. Saturated
    are weights more than half a step beyond their grid. Totals count quantized tensors only.
    """
    folders = [_certifiable(source, output) for output in outputs] if options["save"] else []
    prepare_kernels(threads)
    from llmq.checkpoint.certificate import add_comparison

    measures = measures_for(report_file)
    compared = [_compare(source, output, measures if i == 0 else None) for i, output in enumerate(outputs)]
    results = [found.to_json() | sizes for found, sizes, _ in compared]
    for folder, result in zip(folders, results, strict=False):
        add_comparison(folder, result)
    if report_file and measures is not None:
        from llmq.report import compare_contents, write_page

        write_page(report_file, compare_contents(source, results, compared[0][2], measures))
    if as_json:
        print_json(results[0] if len(results) == 1 else {"outputs": results})
        return
    for found, sizes, _ in compared:
        if len(compared) > 1:
            click.echo(f"{sizes['output']}:")
        _print(found, options["sort"], options["worst"])


def _certifiable(source: str, output: str) -> Path:
    """The folder of an output that was made of a source, and can keep what is measured."""
    from llmq.checkpoint.certificate import check_certifiable
    from llmq.checkpoint.source import open_source

    with open_source(source) as before:
        return check_certifiable(output, source=before.identity())


def _compare(
    source: str, output: str, measures: Measures | None
) -> tuple[Comparison, dict[str, Any], dict[str, dict[str, Any]]]:
    """Errors, size, and what each weight is."""
    from llmq.checkpoint.source import open_source
    from llmq.evaluate.compare import compare
    from llmq.evaluate.inventory import inventory
    from llmq.formats.fp8 import dequantized

    with open_source(source) as before, open_source(output) as after, show_progress() as progress:
        found = compare(dequantized(before), after, progress=progress, watch=measures)
        held = inventory(after)
    described = {tensor["name"]: tensor for tensor in held.to_json()["tensors"]}
    sizes = {"output": output, "output_bytes": held.total_bytes, "bits_per_weight": held.bits_per_weight}
    return found, sizes, described


_KEYS: Final[dict[str, Callable[[TensorError], Any]]] = {
    "name": lambda t: t.name,
    "nmse": lambda t: -t.nmse,
    "max-error": lambda t: -t.max_error,
    "saturation": lambda t: -(t.saturation or 0.0),
}


def _print(found: Comparison, sort: str, worst: int | None) -> None:
    changed = [t for t in found.tensors if not t.unchanged]
    shown = sorted(changed, key=_KEYS["nmse"])[:worst] if worst else changed
    if sort != "file":
        shown = sorted(shown, key=_KEYS[sort])
    if shown:
        print_table(
            ["tensor", "bits>", "bits/weight>", "NMSE>", "SQNR dB>", "cosine>", "max error>", "saturated>"],
            [_cells(t) for t in shown],
        )
        click.echo()
    if len(shown) < len(changed):
        click.echo(f"the {len(shown)} worst of {len(changed)} tensors that changed")
    click.echo(f"{len(found.tensors) - len(changed)} of {len(found.tensors)} tensors are unchanged, bit for bit")
    if found.quantized:
        count = len(found.quantized)
        click.echo(f"{count} quantized tensors: NMSE {found.nmse:.3e}, SQNR {found.sqnr_db:.2f} dB")


def _cells(t: TensorError) -> tuple[object, ...]:
    return (
        t.name,
        t.bits,
        f"{t.bits_per_weight:.3f}",
        f"{t.nmse:.3e}",
        f"{t.sqnr_db:.2f}",
        f"{t.cosine:.6f}",
        f"{t.max_error:.3e}",
        "-" if t.saturation is None else f"{100 * t.saturation:.3f} %",
    )
