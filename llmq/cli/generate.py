"""`llmq generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import (
    compute_option,
    json_option,
    kv_bits_option,
    model_argument,
    sampling_options,
    threads_option,
)
from llmq.cli.output import print_json, print_piece, stdin
from llmq.cli.progress import activity
from llmq.cli.settings import say, settings
from llmq.cli.sizes import SIZE, format_size
from llmq.errors import InputError, ResourceError

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
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Refuse if weights, cache and process need more.")
@compute_option("int8")
@kv_bits_option
@threads_option
@json_option
def command(
    model: str, prompt: str, max_tokens: int, max_memory: int | None, compute: str, threads: int | None, **options: Any
) -> None:
    """Go on from a prompt. The text goes to stdout as it is made, and three lines of figures to stderr.

    Without --temp the likeliest token is taken each time. Layers that are not quantized always compute in float32.
    """
    as_json = options.pop("as_json")
    text = _read_stdin() if prompt == "-" else prompt
    with activity("loading the model and reading the prompt") as ready:
        prepare_kernels(threads)
        from llmq.runtime import load
        from llmq.system.memory import PeakMemory

        with PeakMemory() as memory:
            kv_bits = options.pop("kv_bits")
            loaded = load(model, compute=compute, kv_bits=kv_bits)  # type: ignore[arg-type]  # click checked the choice
            stream = loaded.stream(text, max_tokens=max_tokens, **options)
            if max_memory is not None:
                _check_memory(loaded, stream.generation.prompt_tokens + max_tokens, max_memory)
            loaded.warm_up(stream.generation.prompt_tokens, stream.generation.sampling)
            written = _write(stream, ready, show=not as_json)
    if as_json:
        print_json({"text": written} | _figures(stream.generation, memory))
    else:
        click.echo()
    if not settings().quiet:
        _tell(stream.generation, memory)


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


def _check_memory(model: Model, tokens: int, limit: int) -> None:
    """Raise ResourceError if everything resident at the end would be more than `limit` bytes."""
    from llmq.checkpoint.source import open_source
    from llmq.runtime.cache import kv_bytes
    from llmq.system.memory import current_memory

    with open_source(model.folder) as source:
        weights = sum(info.nbytes for info in source.tensors.values())
    process = current_memory().anon
    tokens = min(tokens, model.context or tokens)
    cache = kv_bytes(model.config, tokens, model.kv_bits)
    needed = weights + cache + process
    if needed > limit:
        parts = (
            f"weights {format_size(weights)}, cache of {tokens} tokens {format_size(cache)}, "
            f"process {format_size(process)}"
        )
        raise ResourceError(
            "the model does not fit into --max-memory",
            expected=f"at most {format_size(limit)}",
            found=f"{format_size(needed)}: {parts}",
            hint="quantize to fewer bits, or ask for fewer tokens with -m",
        )


def _figures(generation: Generation, memory: PeakMemory) -> dict[str, Any]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "tokens": generation.tokens,
        "prompt_seconds": generation.prompt_seconds,
        "seconds": generation.seconds,
        "tokens_per_second": generation.tokens_per_second,
        "stop_reason": generation.stop_reason,
        "peak_anon_bytes": memory.peak_anon,
        "peak_rss_bytes": memory.peak_rss,
    }


def _tell(generation: Generation, memory: PeakMemory) -> None:
    rate = generation.prompt_tokens / generation.prompt_seconds if generation.prompt_seconds else 0.0
    say(f"prompt: {generation.prompt_tokens} tokens, {rate:.1f} tokens/s")
    say(f"generation: {generation.tokens} tokens, {generation.tokens_per_second:.1f} tokens/s")
    say(f"peak memory: {format_size(memory.peak_rss)}, {format_size(memory.peak_anon)} of it not mapped files")
