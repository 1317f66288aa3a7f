"""`llmq quantize model.onnx -o out.onnx`: the flags that mean something there, and what is printed."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from llmq.cli.kernels import prepare_kernels
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress
from llmq.cli.sizes import format_size
from llmq.cli.stopping import stoppable
from llmq.errors import UsageError, printable

if TYPE_CHECKING:
    from llmq.onnx.quantize_plan import WeightPlan
    from llmq.onnx.quantize_report import OnnxReport

__all__ = ["is_onnx", "quantize_onnx"]

_FLAGS: Final = (
    "bits", "group_size", "symmetric", "range", "method", "activations", "embeddings", "ignore", "overrides",
    "threads", "nonfinite", "dry_run", "overwrite",
)  # fmt: skip
_ALWAYS: Final = ("model", "output", "as_json")


def is_onnx(model: str) -> bool:
    """Whether MODEL names an ONNX file."""
    return model.lower().endswith(".onnx")


def quantize_onnx(flags: dict[str, Any], *, as_json: bool) -> None:
    """Quantize an ONNX model and print what was done."""
    _refuse_others(click.get_current_context())
    wanted = {name: flags[name] for name in _FLAGS}
    wanted["method"] = wanted["method"] or "mse"
    wanted["activations"] = wanted["activations"] or "float"
    if not wanted["dry_run"]:
        prepare_kernels(wanted["threads"])
    from llmq.onnx import quantize_model

    with show_progress() as shown, stoppable(shown) as progress:
        report = quantize_model(flags["model"], flags["output"], **wanted, progress=progress)
    if as_json:
        print_json(report.to_json())
    elif report.state == "dry run":
        _print_plan(report)
    else:
        _print_summary(report)


def _refuse_others(context: click.Context) -> None:
    """Raise UsageError for a flag that ONNX models do not have."""
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in (*_FLAGS, *_ALWAYS):
            raise UsageError(f"{parameter.opts[0]} means nothing for an ONNX model", hint="leave it out")


def _print_plan(report: OnnxReport) -> None:
    from llmq.onnx.element_types import type_name

    groups: dict[tuple[str, ...], list[WeightPlan]] = {}
    for weight in report.plan.weights:
        name = re.sub(r"(?<=[._])\d+(?=[._]|$)", "*", weight.holder.name)
        dtype, shape = type_name(weight.holder.tensor.data_type), "x".join(map(str, weight.shape))
        groups.setdefault((name, dtype, shape, _read_by(weight), weight.treatment), []).append(weight)
    rows = [
        (name, len(weights), dtype, shape, ops, what, format_size(sum(w.output_bytes for w in weights)))
        for (name, dtype, shape, ops, what), weights in groups.items()
    ]
    print_table(("tensor", "count>", "dtype", "shape", "read by", "becomes", "bytes>"), rows)
    click.echo()
    click.echo(_sizes(report))
    _print_nodes(report)
    click.echo("nothing was written (--dry-run)")


def _read_by(weight: WeightPlan) -> str:
    """Operators, and the last of their names: a torch module where one is known."""
    place = re.sub(r"(?<=[._/])\d+(?=[._/]|$)", "*", weight.places[-1]) if len(weight.places) else ""
    return " ".join(filter(None, (", ".join(weight.ops), place)))


def _print_summary(report: OnnxReport) -> None:
    click.echo(f"{report.output}: {_sizes(report)}")
    _print_nodes(report)
    kept = Counter(weight.treatment for weight in report.plan.weights if weight.spec is None)
    for reason, count in sorted(kept.items()):
        click.echo(f"  {count} {printable(reason)}")
    error = "" if report.nmse is None else f"; their squared error is {report.nmse:.2e} of their squares (NMSE)"
    click.echo(f"  {report.bits_per_weight_quantized:.3f} bits per quantized weight, scales included{error}")
    rate = format_size(report.source_bytes / max(report.seconds, 1e-9))
    click.echo(f"  {report.seconds:.1f} s ({rate}/s), peak memory {format_size(report.peak_anon_bytes)} anonymous")


def _print_nodes(report: OnnxReport) -> None:
    for what, count in sorted(report.nodes.items()):
        click.echo(f"  {count} nodes {what}")
    before, after = report.opsets
    if before != after:
        click.echo(f"  opset raised from {before} to {after}")


def _sizes(report: OnnxReport) -> str:
    sizes = f"{format_size(report.source_bytes)} -> {format_size(report.output_bytes)}"
    return f"{sizes}, {report.bits_per_weight:.3f} bits per weight"
