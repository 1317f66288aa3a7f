"""`llmq verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, threads_option
from llmq.cli.output import print_json
from llmq.cli.progress import show_progress
from llmq.cli.sizes import format_size
from llmq.errors import VerificationError, printable

if TYPE_CHECKING:
    from llmq.verification import Agreement, Verification

__all__ = ["command"]


@click.command()
@click.argument("output", metavar="OUT")
@click.option(
    "--against",
    metavar="SOURCE",
    help="What OUT was made from: a sample of every weight is quantized again, and must come out the same.",
)
@click.option("--full", is_flag=True, help="Compare all of OUT with the source, not a sample.")
@click.option(
    "--ignore",
    multiple=True,
    metavar="FILE",
    help="Leave a file of OUT out, such as a README.md that you edited; repeatable.",
)
@threads_option
@json_option
def command(
    output: str, against: str | None, full: bool, ignore: tuple[str, ...], threads: int | None, as_json: bool
) -> None:
    """Check every byte of OUT, which `llmq quantize` wrote, against its manifest.

    OUT is a folder, or org/name[@revision] on the Hub. Sizes and checksums of all files and tensors, headers, index,
    configuration and recipe must agree, and scales must be finite. What is wrong is listed, and the exit code is 6.
    """
    prepare_kernels(threads)
    from llmq.verification import verify

    with show_progress() as progress:
        found = verify(output, against=against, full=full, ignore=ignore, threads=threads, progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if not found.ok:
        count = len(found.problems)
        again = "copy or download it again, or make it again with `llmq quantize --overwrite`"
        raise VerificationError(
            f"{count} problem{'s' if count > 1 else ''} found",
            file=found.folder,
            hint=again if against is None else f"compare it with what it was made from; else {again}",
        )


def _print(found: Verification) -> None:
    for problem in found.problems:
        click.echo(str(problem))
    for note in found.notes:
        click.echo(f"note: {printable(note)}")
    read = f"{found.files} files, {found.tensors} tensors, {format_size(found.nbytes)} in {found.seconds:.1f} s"
    click.echo(f"{printable(found.folder)}: {read}" + (": all as written" if found.ok else ""))
    if found.ok:
        click.echo(f"  sha256 of llmq.json: {found.manifest_sha256}")
    if found.agreement is not None:
        _print_agreement(found.agreement)


def _print_agreement(found: Agreement) -> None:
    read = f"{found.blocks} blocks of {found.tensors} tensors, {100 * found.share:.1f} % of the source"
    near = f", {found.near} calibrated and near" if found.near else ""
    click.echo(f"  made from {printable(found.source)}: {read}: {found.exact} the same bit for bit{near}")
