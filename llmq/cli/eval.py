"""`llmq eval`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import (
    compute_option,
    json_option,
    kv_bits_option,
    model_argument,
    report_option,
    threads_option,
)
from llmq.cli.output import print_json
from llmq.cli.progress import activity, show_progress
from llmq.cli.results import read_evaluations
from llmq.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from llmq.evaluate.perplexity import Evaluation
    from llmq.runtime import Model

__all__ = ["command"]


@click.command()
@model_argument
@click.option("--text", required=True, metavar="FILE", type=click.Path(path_type=Path), help="UTF-8 text to score.")
@click.option("--base", metavar="MODEL", help="Measure the divergence from this model too.")
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Window size.")
@click.option("--max-tokens", type=click.IntRange(min=2), metavar="N", help="Use the first N tokens of the text only.")
@compute_option("float32")
@kv_bits_option
@threads_option
@report_option
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RESULT.json",
    help="What an earlier `llmq eval --json` printed, to be drawn in the report too; repeatable.",
)
@json_option
def command(
    model: str, text: Path, base: str | None, context: int, max_tokens: int | None, compute: str, **options: Any
) -> None:
    """Measure the perplexity of a model on a text and, with --base, how far its predictions are from another's.

    The text is cut into non-overlapping windows of --context tokens, without a BOS unless the tokenizer adds one, and
    every position but the first of a window is scored. Activations are float32 by default: the figures then tell what
    the weights cost, and nothing else. The base is always computed in float32.
    """
    report_file = options["report_file"]
    if options["beside"] and not report_file:
        raise UsageError("--beside puts results into a report", hint="add --report FILE.html")
    others = [result for path in options["beside"] for result in read_evaluations(path)]
    content = _read(text)
    with activity("loading"):
        prepare_kernels(options["threads"])
        from llmq.evaluate.perplexity import evaluate, tokenize
        from llmq.runtime import load

        loaded = load(model, compute=compute, kv_bits=options["kv_bits"])  # type: ignore[arg-type]  # click checked the choice
        tokens = tokenize(loaded.tokenizer, content)
        against = _load_base(base, content, tokens) if base else None
    began = time.perf_counter()
    with show_progress() as progress:
        found = evaluate(loaded, tokens, context=context, max_tokens=max_tokens, base=against, progress=progress)
    result = asdict(found) | {
        "model": model,
        "base": base,
        "text": str(text),
        "protocol": found.protocol,
        "kv_bits": loaded.kv_bits,
        "bits_per_weight": loaded.bits_per_weight,
        "seconds": time.perf_counter() - began,
    }
    if report_file:
        from llmq.report import eval_contents, write_page

        write_page(report_file, eval_contents([result, *others]))
    if options["as_json"]:
        print_json({key: value for key, value in result.items() if value is not None})
    else:
        _print(found, loaded.bits_per_weight)


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason} at byte {error.start}", file=text) from None


def _load_base(base: str, content: str, tokens: np.ndarray) -> Model:
    from llmq.evaluate.perplexity import tokenize
    from llmq.runtime import load

    loaded = load(base, compute="float32")
    if not (tokenize(loaded.tokenizer, content).tolist() == tokens.tolist()):
        raise UsageError("the base has another tokenizer", file=base, hint="--base is the model this one was made from")
    return loaded


def _print(found: Evaluation, bits_per_weight: float) -> None:
    click.echo(f"perplexity       {found.perplexity:.4f} +- {found.perplexity_se:.4f}")
    if found.kl_mean is not None:
        click.echo(f"KL divergence    {found.kl_mean:.6f} nats mean, from the base")
        click.echo(f"                 {found.kl_median:.6f} median, {found.kl_p99:.6f} p99, {found.kl_max:.6f} max")
        click.echo(f"same top token   {100 * (found.top1_agreement or 0.0):.2f} %")
    click.echo(f"bits per weight  {bits_per_weight:.3f}")
    click.echo(f"tokens scored    {found.tokens:,}: {found.protocol}")
