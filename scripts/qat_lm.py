"""Train a causal language model for few bits: its linears learn codes and steps while the original shows the way.

python scripts/qat_lm.py -o OUT [MODEL] [--bits 2] [--group-size 32] [--text FILE]... [--judge FILE]

MODEL (by default the bundled sample) is quantized by `--start` first; training goes on from its scales. The
packed checkpoint in OUT is one that `llmq.load` and transformers read. The original, the model in training, its
gradients and two averages of them are in memory as float32: 20 bytes a parameter, and the activations of a batch.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmq
from llmq.benchmarks.child import llmq as command
from llmq.checkpoint.source import open_local
from llmq.errors import LlmqError
from llmq.formats.packed_weights import PackedWeights
from llmq.sample import calibration_text, write_sample
from llmq.spec import QuantSpec
from llmq.torch import parameter_groups, prepare_qat, save_quantized
from llmq.torch.modules import keep_threads
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llmq.spec import QuantizedTensor

__all__ = ["Settings", "train"]

_WARM_UP: Final = 0.05
"""Share of the steps in which rates rise."""

_SECTION: Final = "qat"


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Parameters
    ----------
    bits, group_size : int
    start : str
        Method of `llmq quantize` that chooses the first scales.
    start_tokens : int
        Tokens of the text that it is calibrated on.
    loss : {"distillation", "cross-entropy"}
        Divergence of the next-token distribution from the original's, or surprise at the text's next token.
    train : {"linears", "all"}
        Whether norms, embeddings and head, which stay in floating point, learn too.
    steps, batch, context : int
        Updates, windows in each, and tokens of a window.
    rate, step_rate : float
        Largest learning rates of Adam for weights and for scales; they fall along a cosine.
    seed : int
        Of the order of windows.
    """

    bits: int
    group_size: int
    start: str
    start_tokens: int
    loss: str
    train: str
    steps: int
    batch: int
    context: int
    rate: float
    step_rate: float
    seed: int


def start_weights(model: Path, folder: Path, settings: Settings, text: Path) -> dict[str, QuantizedTensor]:
    """Quantize a model after training, to begin with."""
    calibrated = settings.start != "mse"
    llmq.quantize(
        model,
        folder,
        bits=settings.bits,
        group_size=settings.group_size,
        method=settings.start,
        calibrate=text if calibrated else None,
        calibrate_tokens=settings.start_tokens if calibrated else None,
        lm_head="keep",
    )
    with open_local(folder) as source:
        return dict(PackedWeights(source))


def prepare(original: nn.Module, initial: Mapping[str, QuantizedTensor], settings: Settings) -> nn.Module:
    """A copy in which the weights that were quantized train for their codes."""
    first = next(iter(initial.values())).spec
    spec = QuantSpec(bits=settings.bits, group_size=settings.group_size, scale_dtype=first.scale_dtype)
    kinds = (nn.Linear, nn.Embedding)
    kept = [n for n, m in original.named_modules() if isinstance(m, kinds) and f"{n}.weight" not in initial]
    trained = prepare_qat(original, spec, overrides=dict.fromkeys(kept), initial=initial)
    if settings.train == "linears":
        learning = {f"{name.removesuffix('.weight')}." for name in initial}
        for name, parameter in trained.named_parameters():
            parameter.requires_grad_(any(name.startswith(prefix) for prefix in learning))
    return trained.train()


def batches(tokens: torch.Tensor, settings: Settings) -> Iterator[torch.Tensor]:
    """Windows of a text in random order, int64 (batch, context); every pass cuts it elsewhere."""
    generator = torch.Generator().manual_seed(settings.seed)
    context = settings.context
    while True:
        start = int(torch.randint(0, min(context, len(tokens) - context) + 1, (1,), generator=generator))
        windows = tokens[start:][: (len(tokens) - start) // context * context].reshape(-1, context)
        yield from windows[torch.randperm(len(windows), generator=generator)].split(settings.batch)


def train(trained: nn.Module, original: nn.Module, tokens: torch.Tensor, settings: Settings) -> Iterator[float]:
    """Train in place; yields the loss of each step."""
    groups = parameter_groups(trained, lr=settings.step_rate)
    optimizer = torch.optim.Adam(groups, lr=settings.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, settings.steps))
    source = batches(tokens, settings)
    for _ in range(settings.steps):
        window = next(source)
        loss = _loss(trained, original, window, settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def _share(step: int, steps: int) -> float:
    """Of the largest rate, at some step."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(trained: nn.Module, original: nn.Module, window: torch.Tensor, settings: Settings) -> torch.Tensor:
    logits = trained(window, use_cache=False).logits
    if settings.loss == "cross-entropy":
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), window[:, 1:].flatten())
    with torch.no_grad():
        wanted = original(window, use_cache=False).logits.log_softmax(-1)
    found = logits.log_softmax(-1)
    return nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean()


def tune(
    model: Path, output: Path, texts: list[Path], settings: Settings, *, judge: Path | None, overwrite: bool
) -> dict[str, Any]:
    """Quantize, train and write a model, and measure it on the text `judge`; returns what happened."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = [i for text in texts for i in tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"]]
    if len(ids) < settings.context:
        raise click.ClickException(f"the text has {len(ids)} tokens, fewer than --context {settings.context}")
    with tempfile.TemporaryDirectory(dir=output.parent) as folder, keep_threads():
        initial = start_weights(model, start := Path(folder) / "start", settings, texts[0])
        judged = [] if judge is None else [_evaluated(start, model, judge)]
    trained = prepare(original, initial, settings)
    original.requires_grad_(False)
    for _ in _told(train(trained, original, torch.tensor(ids), settings), settings.steps):
        pass
    recorded = {"method": "qat", "llmq_quantize": settings.start, **asdict(settings)}
    report = save_quantized(trained, model, output, settings=recorded, overwrite=overwrite)
    return {
        "output": str(output),
        "tokens": len(ids),
        "bits_per_weight_quantized": report.plan.bits_per_weight_quantized,
        "settings": asdict(settings),
        "judged": judged if judge is None else [*judged, _evaluated(output, model, judge)],
    }


def _told(losses: Iterable[float], steps: int) -> Iterator[float]:
    """Pass losses on, and tell of the last ten now and then."""
    began, recent = time.perf_counter(), deque[float](maxlen=10)
    for step, loss in enumerate(losses, 1):
        recent.append(loss)
        if step % 10 == 0 or step == steps:
            left = (steps - step) * (time.perf_counter() - began) / step
            click.echo(f"step {step}/{steps}: loss {sum(recent) / len(recent):.4f}, {left:.0f} s left", err=True)
        yield loss


def _evaluated(model: Path, base: Path, text: Path) -> dict[str, Any]:
    """What `llmq eval` says of a model, by the protocol of docs/quality.md."""
    return command("eval", model, "--base", base, "--text", text, "--max-tokens", "16384", "--context", "512")


def markdown(found: dict[str, Any]) -> str:
    """The table for the page."""
    judged = found["judged"]
    settings = Settings(**found["settings"])
    names = (f"`{settings.start}`, {settings.start_tokens:,} tokens", f"then {settings.steps} steps of training")
    rows = [
        (name, f"{found['bits_per_weight_quantized']:.3f}", f"{e['kl_mean']:.4f}", f"{e['perplexity']:.2f}",
         f"{100 * e['top1_agreement']:.1f} %")
        for name, e in zip(names, judged, strict=True)
    ]  # fmt: skip
    rows.append(("original", "16", "-", f"{judged[0]['base_perplexity']:.2f}", "-"))
    headings = (f"{settings.bits} bits, g{settings.group_size}", "bits/weight", "KL", "perplexity", "same top token")
    about = (
        f"{settings.steps} steps of {settings.batch} windows of {settings.context} tokens, from a text of "
        f"{found['tokens']:,}; loss: {settings.loss}; learning rates {settings.rate:g} and {settings.step_rate:g}."
    )
    return f"{table(headings, rows)}\n\n{about}"


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--bits", type=click.IntRange(1, 8), default=2)
@click.option("--group-size", type=click.IntRange(1), default=32)
@click.option(
    "--text", "texts", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="UTF-8 text to train on; repeatable.  [default: a bundled one]",
)  # fmt: skip
@click.option(
    "--start",
    type=click.Choice(["gptq", "block-ap", "imatrix", "mse"]),
    default="gptq",
    help="Chooses the first scales.",
)
@click.option("--start-tokens", type=click.IntRange(1), default=32768, help="Tokens of the first text that it takes.")
@click.option("--loss", type=click.Choice(["distillation", "cross-entropy"]), default="distillation")
@click.option("--train", type=click.Choice(["linears", "all"]), default="linears", help="What learns.")
@click.option("--steps", type=click.IntRange(1), default=800)
@click.option("--batch", type=click.IntRange(1), default=2, help="Windows in a step.")
@click.option("--context", type=click.IntRange(2), default=512, help="Tokens of a window.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=5e-4, help="Learning rate of weights.")
@click.option("--step-rate", type=click.FloatRange(0, min_open=True), default=5e-4, help="Learning rate of scales.")
@click.option("--seed", type=int, default=0)
@click.option("--threads", type=click.IntRange(1), help="Of torch.  [default: one for each core]")
@click.option("--judge", "judged_on", type=click.Path(path_type=Path, exists=True), help="Text to measure on.")
@click.option("--overwrite", is_flag=True, help="Replace what OUT holds.")
@click.option("--markdown", "page", type=click.Path(path_type=Path, exists=True), help="Put the table into this page.")
def main(
    model: Path | None, output: Path, texts: tuple[Path, ...], threads: int | None, judged_on: Path | None,
    overwrite: bool, page: Path | None, **settings: Any,
) -> None:  # fmt: skip
    """Quantize MODEL, train it for its codes, and write it to OUT."""
    if page is not None and judged_on is None:
        raise click.UsageError("--markdown needs --judge")
    if threads:
        torch.set_num_threads(threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    chosen = Settings(**settings)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        if model is None:
            model = write_sample(Path(folder) / "sample")
        if not texts:
            text = Path(folder) / "text.txt"
            text.write_text(calibration_text(), encoding="utf-8")
            texts = (text,)
        try:
            found = tune(model, output, list(texts), chosen, judge=judged_on, overwrite=overwrite)
        except LlmqError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{found['output']}: {found['bits_per_weight_quantized']:.3f} bits per quantized weight")
        if judged_on is not None:
            made = markdown(found)
            click.echo(made)
            if page is not None:
                page.write_text(put(page.read_text(encoding="utf-8"), _SECTION, made), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
