"""`llmq export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import compute_option, json_option, model_argument
from llmq.cli.output import print_json
from llmq.cli.progress import show_progress
from llmq.cli.sizes import format_size
from llmq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.onnx import Exported
    from llmq.system.progress import Progress

__all__ = ["TARGETS", "command"]


class _Result(Protocol):
    """What an export tells of itself."""

    def to_json(self) -> dict[str, Any]: ...


def _export_onnx(model: str, output: Path, progress: Progress, flags: dict[str, Any]) -> Exported:
    from llmq.onnx import export_decoder

    return export_decoder(model, output, progress=progress, **flags)


def _tell_onnx(found: Any) -> None:
    graph, *others = found.files
    click.echo(f"wrote {found.output} ({format_size(found.files[graph])}), opset {found.opset}, {found.compute}")
    where = "copied beside it" if found.copied else "where it stands"
    for name in others:
        note = where if name.endswith(".safetensors") else "what the checkpoint does not hold as graphs want it"
        click.echo(f"  {name}  {format_size(found.files[name])}  {note}")
    if found.agreement is None:
        click.echo("not run: --check compares it with llmq")
    else:
        tokens, relative = found.agreement.tokens, found.agreement.relative
        click.echo(f"ONNX Runtime and llmq agree on {tokens} tokens: logits within {relative:.1e} of their range")


_Row = tuple[str, "Callable[[str, Path, Progress, dict[str, Any]], _Result]", "Callable[[Any], None]"]

TARGETS: Final[dict[str, _Row]] = {"onnx": (".onnx", _export_onnx, _tell_onnx)}
"""By target: the ending of its files, what exports, and what tells of it."""


@click.command()
@model_argument
@click.option("--to", "target", type=click.Choice(list(TARGETS)), help="Target.  [default: by the ending of -o]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What to write.")
@compute_option("int8")
@click.option(
    "--logits",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Of every token of a call, or of the last.",
)
@click.option("--check/--no-check", default=None, help="Run it beside llmq first.  [default: up to 1 GiB of weights]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repository.")
@json_option
def command(model: str, target: str | None, output: Path, as_json: bool, **flags: Any) -> None:
    """Write MODEL in another ecosystem's format.

    onnx is a graph for ONNX Runtime, with the inputs and outputs that Optimum expects. It computes from the packed
    bytes of MODEL's own files: write it into MODEL's folder, and nothing is copied. docs/onnx.md tells how to run it.
    """
    _, export, tell = TARGETS[target or _target_of(output)]
    prepare_kernels()
    with show_progress() as progress:
        found = export(model, output, progress, flags)
    if as_json:
        print_json(found.to_json())
        return
    tell(found)


def _target_of(output: Path) -> str:
    """Guess a target by the ending of what is to be written."""
    for name, (ending, _, _) in TARGETS.items():
        if output.suffix == ending:
            return name
    choices = " or ".join(f"--to {name}" for name in TARGETS)
    raise UsageError("the ending of -o names no target", file=output, hint=f"say {choices}")
