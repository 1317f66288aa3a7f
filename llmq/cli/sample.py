"""`llmq sample`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from llmq.cli.options import json_option
from llmq.cli.output import print_json
from llmq.cli.sizes import format_size
from llmq.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Write the bundled sample model into DIR: a small real Llama of 6.8 million parameters, and held-out text."""
    from llmq.sample import HELDOUT, write_sample

    try:
        write_sample(folder)
    except FileExistsError as error:
        raise UsageError(str(error.strerror or error), file=folder, hint="choose a new or empty folder") from None
    total = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        print_json({"output": str(folder), "text": str(folder / HELDOUT), "bytes": total})
        return
    click.echo(f"wrote {folder} ({format_size(total)})")
    # A path such as "." or ".." has no name to add to.
    named = folder if folder.name not in ("", "..") else folder.resolve()
    small = named.with_name(f"{named.name}-4bit")
    source, output, text = (shlex.quote(str(path)) for path in (folder, small, folder / HELDOUT))
    click.echo("try:")
    click.echo(f"  llmq quantize {source} -o {output} --bits 4")
    click.echo(f"  llmq eval {output} --base {source} --text {text}")
    click.echo(f'  llmq generate {output} -p "It was a dark night" -m 60')
