"""`llmq estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, model_argument, threads_option
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import activity
from llmq.cli.sizes import SIZE, format_size
from llmq.errors import UsageError

if TYPE_CHECKING:
    from llmq.benchmarks.estimate import Estimates, Option

__all__ = ["command"]


def _widths(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:  # noqa: ARG001
    words = [word.strip() for word in value.split(",")]
    if not all(word.isdigit() and 1 <= int(word) <= 8 for word in words):
        raise UsageError("--bits takes widths from 1 to 8 with commas between", found=value)
    return tuple(dict.fromkeys(map(int, words)))


@click.command()
@model_argument
@click.option("--bits", default="8,4,2", show_default=True, callback=_widths, metavar="N,...", help="Widths.")
@click.option("--group-size", type=int, metavar="N", help="Weights of a row that share a scale.  [default: 64]")
@click.option("--method", default="mse", show_default=True, metavar="NAME", help="How codes are chosen: without data.")
@click.option("--lm-head", type=click.Choice(["keep", *map(str, range(8, 0, -1))]), help="Bits of an untied head.")
@click.option(
    "--embeddings", type=click.Choice(["keep", *map(str, range(8, 0, -1))]), default="keep", show_default=True,
    help="Bits of the table.",
)  # fmt: skip
@click.option("--ram", type=SIZE, help="Tell which widths run in this much memory.")
@click.option(
    "--context", type=click.IntRange(min=1), metavar="N", help="Tokens of the cache.  [default: 4096, or what it has]"
)
@click.option(
    "--kv-bits", type=click.Choice(["32", "16", "8", "4"]), default="16", show_default=True, help="Bits of the cache."
)
@click.option("--max-memory", type=SIZE, help="Bound on the memory of quantizing, such as 2GiB.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=".", metavar="OUT", help="Where it would be written."
)
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repository.")
@threads_option
@json_option
def command(model: str, output: Path, revision: str | None, threads: int | None, as_json: bool, **flags: Any) -> None:
    """Tell what quantizing MODEL would take, and what would come of it, before any work.

    Sizes and memory follow from headers alone. Time and speed rest on a second of measuring: this machine's kernels,
    memory and disk, and a piece of the source.
    """
    with activity("measuring"):
        prepare_kernels(threads)
        from llmq.benchmarks.estimate import Wishes, estimate
        from llmq.checkpoint.source import open_source

        head, table = (int(v) if v and v.isdigit() else v for v in (flags.pop("lm_head"), flags.pop("embeddings")))
        wishes = Wishes(lm_head=head, embeddings=table, kv_bits=int(flags.pop("kv_bits")), **flags)
        with open_source(model, revision=revision) as source:
            found = estimate(source, wishes, output)
    if as_json:
        print_json(found.to_json())
        return
    _print(found, wishes.ram)


def _print(found: Estimates, ram: int | None) -> None:
    click.echo(f"{found.model}: {found.parameters:,} parameters, {format_size(found.source_bytes)}")
    columns = ["bits", "size>", "bits/weight>", "memory>", "disk>", "download>", "time>", "to run>", "tokens/s>"]
    print_table(
        [*columns, "fits"] if ram else columns, [_cells(option, with_fit=ram is not None) for option in found.options]
    )
    rates = found.rates
    near = "network" if rates.far else "source"
    click.echo(
        f"measured: {near} {format_size(int(rates.source))}/s, disk {format_size(int(rates.disk))}/s written and "
        f"{format_size(int(rates.stream))}/s read, memory {format_size(int(rates.memory))}/s"
    )
    if found.kv_bytes is None:
        click.echo("llmq cannot run this architecture: sizes and time of quantizing only")
        return
    click.echo(f"to run: weights, {format_size(found.kv_bytes)} for {found.context} tokens, and the process")
    if ram is not None:
        click.echo(_advice(found, ram))


def _cells(option: Option, *, with_fit: bool) -> tuple[object, ...]:
    speed = "-" if option.tokens_per_second is None else f"{option.tokens_per_second:.3g}"
    cells = (
        option.bits,
        format_size(option.output_bytes),
        f"{option.bits_per_weight:.3f}",
        format_size(option.peak_bytes),
        format_size(option.disk_bytes),
        format_size(option.download_bytes) if option.download_bytes else "-",
        _duration(option.seconds),
        "-" if option.run_bytes is None else format_size(option.run_bytes),
        speed,
    )
    return (*cells, _fit(option)) if with_fit else cells


def _fit(option: Option) -> str:
    """Whether and how a width runs in the memory that was asked for."""
    if option.fits is None or option.fits:
        return "-" if option.fits is None else "yes"
    if option.resident_blocks == option.blocks:
        return "not all experts"
    if option.streamed_bytes is None:
        return "no"
    return f"{option.resident_blocks} of {option.blocks} blocks"


def _advice(found: Estimates, ram: int) -> str:
    fitting = [option.bits for option in found.options if option.fits]
    if fitting:
        mixed = f"--ram {ram >> 20}MiB --context {found.context} chooses widths tensor by tensor"
        return f"fits: {max(fitting)} bits; `llmq quantize` with {mixed}"
    if any(option.streamed_bytes for option in found.options):
        return f"none fits: `llmq generate --max-memory {ram >> 20}MiB` reads the other blocks for every token"
    return "none fits: fewer bits, --embeddings 8, --kv-bits 8 or 4, or a shorter --context take less"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
