"""`llmq eval`."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.checkpoint.text_files import read_utf8
from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import (
    compute_option,
    json_option,
    kv_bits_option,
    model_argument,
    report_option,
    save_option,
    threads_option,
)
from llmq.cli.output import print_json
from llmq.cli.progress import activity, show_progress
from llmq.cli.results import read_evaluations
from llmq.cli.sizes import SIZE
from llmq.errors import UsageError
from llmq.sample import heldout_text
from llmq.system.memory import PeakMemory

if TYPE_CHECKING:
    import numpy as np

    from llmq.evaluate.perplexity import Evaluation
    from llmq.runtime import Model

__all__ = ["command"]

_log = logging.getLogger("llmq")

_BUNDLED: Final = "bundled heldout.txt"


@click.command()
@model_argument
@click.option(
    "--text",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="UTF-8 text to score.  [default: the bundled one, 60 kB of a novel]",
)
@click.option("--base", metavar="MODEL", help="Measure the divergence from this model too.")
@click.option("--context", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Window size.")
@click.option("--max-tokens", type=click.IntRange(min=2), metavar="N", help="Use the first N tokens of the text only.")
@compute_option("float32")
@kv_bits_option
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Bound on the memory of the process, e.g. 2GiB.")
@threads_option
@save_option
@report_option
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RESULT.json",
    help="What an earlier `llmq eval --json` printed, to be drawn in the report too; repeatable.",
)
@json_option
def command(model: str, text: Path | None, base: str | None, **options: Any) -> None:
    """Measure the perplexity of a model on a text and, with --base, how far its predictions are from another's.

    The text is cut into non-overlapping windows of --context tokens, without a BOS unless the tokenizer adds one, and
    every position but the first of a window is scored. Activations are float32 by default: the figures then tell what
    the weights cost, and nothing else. The base is always computed in float32.

    All windows go through one decoder block after another, so that no model is ever in memory as a whole.
    """
    report_file = options["report_file"]
    if options["beside"] and not report_file:
        raise UsageError("--beside puts results into a report", hint="add --report FILE.html")
    others = [result for path in options["beside"] for result in read_evaluations(path)]
    folder = _certifiable(model) if options["save"] else None
    content = _read(text)
    with activity("loading"):
        prepare_kernels(options["threads"])
        from llmq.evaluate.perplexity import evaluate, tokenize
        from llmq.runtime import load_mapped

        loaded = load_mapped(model, compute=options["compute"], kv_bits=options["kv_bits"])
        tokens = tokenize(loaded.tokenizer, content)
        against = _load_base(base, content, tokens) if base else None
    began = time.perf_counter()
    settings = {name: options[name] for name in ("context", "max_tokens", "max_memory")}
    with show_progress() as progress, PeakMemory() as memory:
        found = evaluate(loaded, tokens, base=against, progress=progress, **settings)
    result = asdict(found) | {
        "model": model,
        "base": base,
        "text": _BUNDLED if text is None else str(text),
        "text_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "protocol": found.protocol,
        "kv_bits": loaded.kv_bits,
        "bits_per_weight": loaded.bits_per_weight,
        "seconds": time.perf_counter() - began,
        "peak_anon_bytes": memory.peak_anon,
        "peak_rss_bytes": memory.peak_rss,
    }
    if folder is not None:
        _save(folder, result)
    if report_file:
        from llmq.report import eval_contents, write_page

        write_page(report_file, eval_contents([result, *others]))
    if options["as_json"]:
        print_json({key: value for key, value in result.items() if value is not None})
    else:
        _print(found, loaded.bits_per_weight)


def _certifiable(model: str) -> Path:
    from llmq.checkpoint.certificate import check_certifiable

    return check_certifiable(model)


def _save(folder: Path, result: dict[str, Any]) -> None:
    """Keep a result beside the weights, without the paths of this machine."""
    from llmq.checkpoint.certificate import add_evaluation

    base = result["base"]
    names = {"model": folder.resolve().name, "text": Path(result["text"]).name}
    # `org/name` of the Hub is a name, and a folder's path is not.
    names["base"] = Path(base).resolve().name if base and Path(base).exists() else base
    add_evaluation(folder, {key: value for key, value in (result | names).items() if value is not None})


def _read(text: Path | None) -> str:
    if text is None:
        _log.info("hint: no --text: the bundled one is scored, which says little of models that are not in English")
        return heldout_text()
    return read_utf8(text)


def _load_base(base: str, content: str, tokens: np.ndarray) -> Model:
    from llmq.evaluate.perplexity import tokenize
    from llmq.runtime import load_mapped

    loaded = load_mapped(base, compute="float32")
    if not (tokenize(loaded.tokenizer, content).tolist() == tokens.tolist()):
        raise UsageError("the base has another tokenizer", file=base, hint="--base is the model this one was made from")
    return loaded


def _print(found: Evaluation, bits_per_weight: float) -> None:
    click.echo(f"perplexity       {found.perplexity:.4f} {_error(found, 'perplexity', 4)}")
    if found.kl_mean is not None:
        change, error = found.delta_ln_ppl or 0.0, _error(found, "delta_ln_ppl", 6)
        click.echo(f"above the base   {change:+.6f} {error} in ln(perplexity), base {found.base_perplexity:.4f}")
        click.echo(f"KL divergence    {found.kl_mean:.6f} {_error(found, 'kl_mean', 6)} nats mean, from the base")
        click.echo(f"                 {found.kl_median:.6f} median, {found.kl_p99:.6f} p99, {found.kl_max:.6f} max")
        percent, off = 100 * (found.top1_agreement or 0.0), _error(found, "top1_agreement", 2, 100.0)
        click.echo(f"same top token   {percent:.2f} {off} %")
    click.echo(f"bits per weight  {bits_per_weight:.3f}")
    click.echo(f"tokens scored    {found.tokens:,}: {found.protocol}")
    how = f"with the {found.windows} windows as clusters" if found.windows > 1 else "as if positions were independent"
    click.echo(f"standard errors  {how}")


def _error(found: Evaluation, name: str, digits: int, factor: float = 1.0) -> str:
    """The standard error that is printed: by windows, of which there must be two."""
    value = getattr(found, f"{name}_se_clustered" if found.windows > 1 else f"{name}_se")
    return f"+- {factor * value:.{digits}f}"
