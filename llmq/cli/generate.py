"""`llmq generate`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import (
    compute_option,
    json_option,
    kv_bits_option,
    memory_options,
    model_argument,
    sampling_options,
    threads_option,
)
from llmq.cli.output import print_json, print_piece, stdin
from llmq.cli.progress import activity
from llmq.cli.settings import say, settings
from llmq.cli.sizes import format_size
from llmq.errors import InputError

if TYPE_CHECKING:
    from llmq.runtime import Model
    from llmq.runtime.generation import Generation, TextStream
    from llmq.system.memory import PeakMemory

__all__ = ["command"]


@click.command()
@model_argument
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="Text to go on from; - reads it from stdin.")
@click.option("-m", "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@sampling_options(temp=0.0)
@memory_options
@click.option(
    "--speculate",
    type=click.IntRange(min=0),
    metavar="N",
    help="Without --temp: guess N tokens from earlier in the text and check them in one pass.  [default: 8 where "
    "blocks are read for every pass, else 0]",
)
@compute_option("int8")
@kv_bits_option
@threads_option
@json_option
def command(model: str, prompt: str, max_tokens: int, threads: int | None, speculate: int | None, **flags: Any) -> None:
    """Go on from a prompt. The text goes to stdout as it is made, and three lines of figures to stderr.

    Without --temp the likeliest token is taken each time. Layers that are not quantized always compute in float32. A
    model larger than memory runs too: what does not fit is read from the disk for every token.
    """
    as_json = flags.pop("as_json")
    loading = {name: flags.pop(name) for name in ("compute", "kv_bits", "max_memory", "mlock")}
    text = _read_stdin() if prompt == "-" else prompt
    with activity("loading the model and reading the prompt") as ready:
        prepare_kernels(threads)
        from llmq.system.memory import PeakMemory

        with PeakMemory() as memory:
            loaded = _load(model, text, max_tokens, loading)
            stream = loaded.stream(text, max_tokens=max_tokens, speculate=speculate, **flags)
            loaded.warm_up(stream.generation.prompt_tokens, stream.generation.sampling)
            try:
                written = _write(stream, ready, show=not as_json)
            finally:
                loaded.close()
    if as_json:
        print_json({"text": written} | _figures(loaded, stream.generation, memory))
    else:
        click.echo()
    if not settings().quiet:
        _tell(loaded, stream.generation, memory)


def _load(model: str, text: str, max_tokens: int, options: dict[str, Any]) -> Model:
    """Load a model with room for a text and so many tokens more."""
    from llmq.checkpoint.source import open_local
    from llmq.runtime import load
    from llmq.runtime.text import encode, load_tokenizer

    with open_local(model) as source:
        folder = source.folder
    tokenizer = load_tokenizer(folder)
    here = model if os.path.lexists(model) else folder  # not looked up on the Hub a second time
    loaded = load(here, context=len(encode(tokenizer, text)) + max_tokens, **options)
    loaded.tokenizer = tokenizer  # not a second time
    residency = loaded.residency
    if options["max_memory"] is not None and residency is not None:
        if residency.streamed:
            staying = f"{residency.layers - len(residency.streamed)} of {residency.layers} blocks stay in memory"
            say(f"{staying}; {format_size(residency.streamed_bytes)} are read for every pass")
        if residency.expert_bytes is not None:
            say(f"{format_size(residency.expert_bytes)} of experts stay in memory: those used last")
    return loaded


def _read_stdin() -> str:
    try:
        return stdin().read()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: {error.reason}", file="stdin") from None


def _write(stream: TextStream, ready: Any, *, show: bool) -> str:
    """Write the text as it comes, unless it is shown as a whole later; the text is returned."""
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if show:
            ready()
            print_piece(piece)
    return "".join(pieces)


def _figures(model: Model, generation: Generation, memory: PeakMemory) -> dict[str, Any]:
    residency = model.residency
    return {
        "prompt_tokens": generation.prompt_tokens,
        "tokens": generation.tokens,
        "prompt_seconds": generation.prompt_seconds,
        "seconds": generation.seconds,
        "tokens_per_second": generation.tokens_per_second,
        "stop_reason": generation.stop_reason,
        "guessed": generation.guessed,
        "accepted": generation.accepted,
        "peak_anon_bytes": memory.peak_anon,
        "peak_rss_bytes": memory.peak_rss,
        "predicted_peak_bytes": None if residency is None else residency.expected_bytes,
        "blocks": model.config.n_layers,
        "streamed_blocks": 0 if residency is None else len(residency.streamed),
        "streamed_bytes": model.streamed_bytes,
    }


def _tell(model: Model, generation: Generation, memory: PeakMemory) -> None:
    rate = generation.prompt_tokens / generation.prompt_seconds if generation.prompt_seconds else 0.0
    say(f"prompt: {generation.prompt_tokens} tokens, {rate:.1f} tokens/s")
    guesses = f", {generation.accepted} of {generation.guessed} guesses right" if generation.guessed else ""
    say(f"generation: {generation.tokens} tokens, {generation.tokens_per_second:.3g} tokens/s{guesses}")
    predicted = f" (predicted {format_size(model.residency.expected_bytes)})" if model.residency else ""
    anonymous = format_size(memory.peak_anon)
    say(f"peak memory: {format_size(memory.peak_rss)}{predicted}, {anonymous} of it not mapped files")
