"""`llmq export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import json_option, model_argument
from llmq.cli.output import print_json
from llmq.cli.progress import show_progress
from llmq.cli.sizes import format_size
from llmq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from llmq.onnx import ExportedDecoder, ExportedNetwork
    from llmq.system.progress import Progress

__all__ = ["TARGETS", "command"]

_NETWORK: Final = ".safetensors"
"""Ending of the files of integer networks; language models are folders."""

_OF_DECODERS: Final = ("compute", "logits", "check", "revision")
_OF_NETWORKS: Final = ("style", "input_shape")


class _Result(Protocol):
    """What an export tells of itself."""

    def to_json(self) -> dict[str, Any]: ...


class _Shape(click.ParamType[tuple[int | None, ...]]):
    """Sizes of one item with commas between, and ? for one that stays open."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None, ...]:
        """Read a value from the command line."""
        try:
            sizes = tuple(None if size.strip() == "?" else int(size) for size in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of sizes such as 3,32,32 or 3,?,?", param, ctx)
        if any(size is not None and size < 1 for size in sizes):
            self.fail(f"{value!r} has a size below 1", param, ctx)
        return sizes


def _export_onnx(
    model: str, output: Path, progress: Progress, flags: dict[str, Any]
) -> ExportedDecoder | ExportedNetwork:
    from llmq.onnx import export_decoder, export_saved
    from llmq.onnx.output_files import refuse_output

    if not model.endswith(_NETWORK):
        _refuse(flags, _OF_NETWORKS, f"for a file of llmq.integer.save ({_NETWORK}) only")
        given = _given(flags, _OF_DECODERS)
        return export_decoder(model, output, overwrite=flags["overwrite"], progress=progress, **given)
    _refuse(flags, _OF_DECODERS, "for a language model in a folder only")
    refuse_output(output, overwrite=flags["overwrite"], data=False)
    return export_saved(model, output, **_given(flags, _OF_NETWORKS))


def _refuse(flags: dict[str, Any], names: Collection[str], why: str) -> None:
    """Refuse flags that are there for another kind of MODEL."""
    for name in names:
        if flags[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is {why}")


def _given(flags: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Flags of these names that were given."""
    return {name: flags[name] for name in names if flags[name] is not None}


def _tell_onnx(found: Any) -> None:
    from llmq.onnx import ExportedNetwork

    if isinstance(found, ExportedNetwork):
        click.echo(f"wrote {found.output} ({format_size(found.nbytes)}), opset {found.opset}, {found.style}")
        return
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
@click.option(
    "--compute",
    type=click.Choice(["int8", "float32"]),
    help="Activations of packed layers: quantized to int8, faster, or exact.  [default: int8]",
)
@click.option(
    "--logits", type=click.Choice(["all", "last"]), help="Of every token of a call, or of the last.  [default: all]"
)
@click.option("--check/--no-check", default=None, help="Run it beside llmq first.  [default: up to 1 GiB of weights]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repository.")
@click.option(
    "--style",
    type=click.Choice(["qdq", "qoperator"]),
    help="Of a network: float operators between quantizers, or operators on integers.  [default: qdq]",
)
@click.option(
    "--input-shape",
    type=_Shape(),
    metavar="N,...",
    help="Of a network: sizes of one item, ? for an open one.  [default: what its first layer with a weight takes]",
)
@json_option
def command(model: str, target: str | None, output: Path, as_json: bool, **flags: Any) -> None:
    """Write MODEL in another ecosystem's format.

    onnx is a graph for ONNX Runtime, with the inputs and outputs that Optimum expects. It computes from the packed
    bytes of MODEL's own files: write it into MODEL's folder, and nothing is copied. A MODEL that is a file of
    llmq.integer.save becomes a graph of that network. docs/onnx.md tells how to run them.
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
