"""`llmq inspect`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.cli.options import json_option, model_argument
from llmq.cli.output import print_json, print_table
from llmq.cli.sizes import format_size
from llmq.errors import printable

if TYPE_CHECKING:
    from llmq.evaluate.inventory import Entry, Inventory

__all__ = ["command"]

_FIGURES: Final = {"perplexity": "perplexity", "kl_mean": "mean KL divergence"}


@click.command()
@model_argument
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repository.")
@json_option
def command(model: str, tensors: bool, revision: str | None, as_json: bool) -> None:
    """Show what a checkpoint holds: architecture, parameters, bits per weight. Reads headers only."""
    from llmq.checkpoint.certificate import read_certificate
    from llmq.checkpoint.source import open_source
    from llmq.evaluate.inventory import inventory

    with open_source(model, revision=revision) as source:
        held = inventory(source)
        measured = read_certificate(source.folder) if source.config else None
    if as_json:
        print_json(held.to_json() | {"quality": measured})
        return
    _print_summary(held)
    if measured:
        _print_quality(measured)
    if tensors:
        click.echo()
        rows = [(e.name, _kind(e), " x ".join(map(str, e.shape)), format_size(e.nbytes)) for e in held.entries]
        print_table(["tensor", "type", "shape>", "size>"], rows)


def _print_summary(held: Inventory) -> None:
    parameters, bits = held.parameters, held.bits_per_weight
    kinds = Counter(_kind(entry) for entry in held.entries)
    lines = [
        ("architecture", held.architecture or "unknown"),
        ("format", held.format),
        ("parameters", f"{parameters:,}" if parameters is not None else "unknown"),
        ("bits per weight", f"{bits:.3f}" if bits is not None else "unknown"),
        ("size", f"{format_size(held.total_bytes)} in {len(held.entries)} tensors"),
        ("types", ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())),
    ]
    for name, value in lines:
        click.echo(f"{name:<16} {printable(value)}")


def _print_quality(measured: dict[str, Any]) -> None:
    """What `quality.json` tells, a line each; nothing is trusted to be there."""
    if isinstance(measured.get("sqnr_db"), float) and isinstance(measured.get("nmse"), float):
        click.echo(f"{'quality':<16} NMSE {measured['nmse']:.3e}, SQNR {measured['sqnr_db']:.2f} dB")
    for found in measured["evaluations"]:
        numbers = [key for key in ("perplexity", "kl_mean") if isinstance(found.get(key), float)]
        words = [f"{_FIGURES[key]} {found[key]:.6g}" for key in numbers]
        from_base = f" from {found.get('base')}" if "kl_mean" in numbers else ""
        said = f"{', '.join(words)}{from_base}, on {found.get('text')} in {found.get('compute')}"
        click.echo(f"{'':<16} {printable(said)}")


def _kind(entry: Entry) -> str:
    if entry.spec is None:
        return entry.dtype
    sign = "" if entry.spec.symmetric else " asymmetric"
    group = "per channel" if entry.spec.group_size == -1 else f"group {entry.spec.group_size}"
    return f"{entry.bits}-bit {group}{sign}"
