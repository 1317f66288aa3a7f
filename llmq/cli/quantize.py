"""`llmq quantize`: shrink a checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import budget_options, json_option, measures_for, model_argument, report_option, threads_option
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress
from llmq.cli.quantize_onnx import is_onnx, quantize_onnx
from llmq.cli.sizes import SIZE, format_size
from llmq.cli.stopping import stoppable
from llmq.errors import StoppedError, UsageError, printable

if TYPE_CHECKING:
    from llmq.pipeline import QuantizeReport
    from llmq.plan import TensorPlan
    from llmq.report import Measures
    from llmq.system.progress import Progress

__all__ = ["command"]

_KEEP_OR_BITS = click.Choice(["keep", "auto", *map(str, range(8, 0, -1))])


class _GroupSize(click.ParamType[int]):
    """A positive number, or -1 or `channel` for the whole row."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a value from the command line."""
        if value == "channel":
            return -1
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'channel'", param, ctx)


@click.command(short_help="Shrink a checkpoint.")
@model_argument
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT", help="Folder or .onnx file."
)
@click.option("--bits", type=click.IntRange(1, 8), help="Bits of a code.  [default: 4; 8 with --activations int8]")
@click.option(
    "--group-size",
    type=_GroupSize(),
    metavar="N",
    help="Weights of a row that share a scale; -1 or 'channel': the whole row.  [default: 64; 128 for vllm]",
)
@click.option("--symmetric/--asymmetric", default=True, show_default=True, help="Without or with zero points.")
@click.option(
    "--range",
    type=click.Choice(["full", "narrow"]),
    default="full",
    show_default=True,
    help="narrow leaves the most negative code of a symmetric grid out.",
)
@click.option(
    "--method",
    metavar="NAME",
    help="How codes are chosen: rtn, percentile, entropy, hqq, mse; calibrated: imatrix, gptq, block-ap.  "
    "[default: mse; gptq with --calibrate]",
)
@click.option(
    "--activations",
    type=click.Choice(["float", "int8"]),
    help="Of ONNX models: whether they are quantized as the model runs.  [default: float]",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="UTF-8 text to calibrate on.  [default for calibrated methods: a bundled one]",
)
@click.option(
    "--calibrate-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of that text to use.  [default: 8192]",
)
@click.option(
    "--lm-head", type=_KEEP_OR_BITS, help="Bits of an untied head.  [default: 8; keep for vllm, and if asymmetric]"
)
@click.option(
    "--embeddings",
    type=_KEEP_OR_BITS,
    default="keep",
    show_default=True,
    help="Bits of the table; auto, as for --lm-head, lets --target-size, --target-bpw or --ram choose.",
)
@click.option("--ignore", multiple=True, metavar="REGEX", help="Keep the weights whose names it finds; repeatable.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="REGEX=bits:8,group:32",
    help="Other settings for the weights whose names it finds; repeatable, later ones win.",
)
@click.option(
    "--for",
    "target",
    type=click.Choice(["llmq", "transformers", "vllm", "onnx"]),
    default="llmq",
    show_default=True,
    help="Who must be able to read the result; what it could not is refused.",
)
@budget_options
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="recipe.json of an earlier output, or its folder: every tensor gets what it got there.",
)
@click.option(
    "--max-memory",
    type=SIZE,
    metavar="SIZE",
    help="Bound on the process's anonymous memory, such as 2GiB.  [default: what the machine has free]",
)
@click.option("--max-shard-size", type=SIZE, default="5GB", show_default=True, help="Bytes of a file.")
@threads_option
@click.option(
    "--nonfinite",
    type=click.Choice(["error", "keep"]),
    default="error",
    show_default=True,
    help="What to do about NaN or infinity in a weight: stop, or keep that weight as it is.",
)
@click.option("--revision", metavar="R", help="Branch, tag or commit of a Hub repository.")
@click.option("--download", is_flag=True, help="Download a Hub repository first, rather than read it by ranges.")
@click.option("--dry-run", is_flag=True, help="Show what would be done with each tensor, and write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace what OUT holds.")
@click.option("--no-resume", is_flag=True, help="Start an interrupted run over.")
@report_option
@json_option
def command(
    as_json: bool,
    no_resume: bool,
    report_file: Path | None,
    activations: str | None,
    **flags: Any,
) -> None:
    """Shrink a checkpoint into the folder OUT, or a float model in ONNX into the file OUT.

    MODEL is read block by block, its linear layers are quantized, and OUT gets a checkpoint in the compressed-tensors
    format, which transformers reads too. An interrupted run is continued by the same command.

    Of a MODEL that ends in .onnx, whatever made it, matrix products and convolutions are quantized for ONNX Runtime;
    OUT ends in .onnx too, and the data stands beside it in OUT.data.
    """
    if is_onnx(flags["model"]):
        quantize_onnx(flags | {"activations": activations}, as_json=as_json)
        return
    if activations is not None:
        raise UsageError("--activations is for ONNX models", hint="--compute int8 of generate, chat and eval")
    if report_file and flags["dry_run"]:
        raise UsageError("--report tells what a run measured, and --dry-run quantizes nothing")
    measures_errors = any(flags[name] is not None for name in ("target_size", "target_bpw", "ram"))
    if measures_errors or not flags["dry_run"]:
        prepare_kernels(flags["threads"])
    from llmq.pipeline import quantize

    measures = measures_for(report_file)
    with show_progress() as shown, stoppable(shown) as progress:
        try:
            report = quantize(**flags, resume=not no_resume, progress=progress, watch=measures)
            if report_file and measures is not None:
                _write_report(report_file, report, measures, flags, progress)
        except KeyboardInterrupt:
            if not (flags["output"] / ".llmq").is_dir():
                raise
            raise StoppedError("stopped", file=flags["output"], hint="the same command goes on from here") from None
    if as_json:
        print_json(report.to_json())
    elif report.state == "dry run":
        _print_plan(report)
    else:
        _print_summary(report)


def _write_report(
    path: Path, report: QuantizeReport, measures: Measures, flags: dict[str, Any], progress: Progress
) -> None:
    from llmq.checkpoint.source import open_source
    from llmq.formats.fp8 import dequantized
    from llmq.report import quantize_contents, write_page

    elements = {tensor.name: tensor.parameters for tensor in report.plan.quantized}
    with open_source(flags["model"], revision=flags["revision"]) as source, open_source(report.output) as output:
        measures.complete(dequantized(source), output, elements, progress)
    settings = {"method": report.plan.recipe.method, "max_memory": flags["max_memory"]}
    contents = quantize_contents(
        report.to_json(), measures, source=flags["model"], settings=settings, memory=report.memory
    )
    write_page(path, contents)


def _print_plan(report: QuantizeReport) -> None:
    plan = report.plan
    groups: dict[tuple[str, ...], list[TensorPlan]] = {}
    for tensor in plan.tensors:
        shape = "x".join(map(str, tensor.info.shape))
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", tensor.name)
        groups.setdefault((pattern, tensor.info.dtype, shape, _treatment(tensor)), []).append(tensor)
    rows = [
        (pattern, len(tensors), dtype, shape, what, format_size(sum(t.output_bytes for t in tensors)))
        for (pattern, dtype, shape, what), tensors in groups.items()
    ]
    print_table(("tensor", "count>", "dtype", "shape", "becomes", "bytes>"), rows)
    click.echo()
    if plan.recipe.goal is not None:
        _print_mixture(report)
    click.echo(f"{_sizes(report)}, {len(plan.shards)} file{'s' if len(plan.shards) > 1 else ''}")
    click.echo(f"peak memory about {format_size(plan.predicted_peak_bytes)} (anonymous)")
    _print_skipped(report)
    click.echo("nothing was written (--dry-run)")


def _print_mixture(report: QuantizeReport) -> None:
    """Weights by width, and what was reached of what was asked."""
    from llmq.plan.goals import counted

    plan, found = report.plan, report.goal()
    assert found is not None
    chosen = counted(plan)
    whole = sum(t.parameters for t in chosen)
    for bits in sorted({t.spec.bits for t in chosen if t.spec}):
        share = sum(t.parameters for t in chosen if t.spec and t.spec.bits == bits) / whole
        click.echo(f"{bits} bits {100 * share:5.1f} % of the weights {'#' * round(40 * share)}")
    click.echo(
        f"{found['reached']['bits_per_weight']:.4f} bits per weight of these, {plan.file_bytes} bytes in all files"
    )


def _treatment(tensor: TensorPlan) -> str:
    spec = tensor.spec
    if spec is None:
        return f"kept: {tensor.reason}"
    grid = "" if spec.symmetric else " asymmetric"
    return f"{spec.bits} bits, group {spec.group_size}{grid}"


def _print_summary(report: QuantizeReport) -> None:
    plan = report.plan
    if report.state == "already complete":
        click.echo(f"already complete: {printable(report.output)} ({_sizes(report)})")
        return
    click.echo(f"{printable(report.output)}: {_sizes(report)}")
    widths = Counter(_treatment(t) for t in plan.quantized)
    for what, count in sorted(widths.items()):
        click.echo(f"  {count} tensors to {what}")
    kept = Counter(t.reason for t in plan.tensors if t.spec is None)
    for reason, count in sorted(kept.items()):
        click.echo(f"  {count} kept: {reason}")
    click.echo(f"  {plan.bits_per_weight_quantized:.3f} bits per quantized weight, scales included")
    if plan.recipe.goal is not None:
        _print_mixture(report)
    _print_edges(report)
    rate = format_size(plan.source_bytes / max(report.seconds, 1e-9))
    click.echo(f"  {report.seconds:.1f} s ({rate}/s)")
    anonymous, total = format_size(report.peak_anon_bytes), format_size(report.peak_rss_bytes)
    told = f"predicted {format_size(plan.predicted_peak_bytes)}, limit {format_size(report.max_memory)}"
    click.echo(f"  peak memory {anonymous} anonymous ({told}), {total} with mapped files")
    _print_skipped(report)


def _print_edges(report: QuantizeReport) -> None:
    """A line for each kind of odd group or tensor that there was."""
    found = report.edges_json()
    told = {
        "zero_groups": "groups of zeros",
        "constant_groups": "groups of one number",
        "scale_underflows": "groups with the least scale there is",
        "scale_overflows": "groups with the largest scale there is: their largest weights may be clipped",
        "nonfinite_tensors": "tensors copied with NaN or infinity",
    }
    left = len(report.plan.quantized) - found["quantized_tensors"]
    where = f" (in what this run wrote; {left} tensors were there already)" if left else ""
    for key, what in told.items():
        if found[key]:
            click.echo(f"  {found[key]} {what}{where}")


def _sizes(report: QuantizeReport) -> str:
    plan = report.plan
    sizes = f"{format_size(plan.source_bytes)} -> {format_size(plan.output_bytes)}"
    return f"{sizes}, {plan.bits_per_weight:.3f} bits per weight"


def _print_skipped(report: QuantizeReport) -> None:
    if report.skipped_files:
        click.echo(f"  not copied: {', '.join(report.skipped_files)}")
