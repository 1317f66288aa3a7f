"""`llmq compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, threads_option
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress

if TYPE_CHECKING:
    from llmq.evaluate.compare import Comparison

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("output", metavar="OUT")
@threads_option
@json_option
def command(source: str, output: str, threads: int | None, as_json: bool) -> None:
    """Measure the error of every quantized tensor of OUT against SOURCE, which it was made from.

    NMSE is the sum of the squared error over the sum of the squared weights; SQNR is the same in decibels. Totals
    count quantized tensors only.
    """
    prepare_kernels(threads)
    from llmq.checkpoint.source import open_source
    from llmq.evaluate.compare import compare

    with open_source(source) as before, open_source(output) as after, show_progress() as progress:
        found = compare(before, after, progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


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
