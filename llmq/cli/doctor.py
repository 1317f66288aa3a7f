"""`llmq doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option
from llmq.cli.output import print_json
from llmq.cli.progress import activity
from llmq.cli.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["command"]


@click.command()
@click.option("--warm", is_flag=True, help="Compile the kernels now, by a small run of everything.")
@json_option
def command(warm: bool, as_json: bool) -> None:
    """Look over this machine and installation: versions, CPU, threads, caches, limits, and what may go wrong."""
    with activity("trying every kernel" if warm else "looking around"):
        prepare_kernels()
        from llmq.cli.examination import examine, warm_up

        seconds = warm_up() if warm else None
    found = examine() | ({"warm_seconds": seconds} if warm else {})
    if as_json:
        print_json(found)
        return
    for title in ("versions", "cpu", "threads", "memory", "disk", "environment"):
        _print_section(title, found[title])
    click.echo(f"kernel cache: {found['cache'] or 'none: no folder can be written'}")
    if seconds is not None:
        click.echo(f"kernels are compiled: {seconds:.1f} s")
    for problem in found["problems"]:
        click.echo(f"problem: {problem}")
    if not found["problems"]:
        click.echo("no problems found")


def _print_section(title: str, values: Mapping[str, Any]) -> None:
    click.echo(f"{title}:")
    for name, value in values.items():
        if value is None:
            shown = "-"
        elif isinstance(value, list):
            shown = " ".join(map(str, value))
        else:
            shown = format_size(value) if title in ("memory", "disk") else str(value)
        click.echo(f"  {name:<20} {shown}")
