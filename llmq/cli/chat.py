"""`llmq chat`."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, cast

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
from llmq.cli.settings import say
from llmq.errors import LlmqError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from llmq.runtime.conversation import Conversation

__all__ = ["command"]


@click.command()
@model_argument
@click.option("--system", metavar="TEXT", help="A message that goes before the conversation.")
@click.option("-m", "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, metavar="N")
@sampling_options(temp=0.7)
@memory_options
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of conversation that --max-memory leaves room for.  [default: 4096, or what the model has]",
)
@compute_option("int8")
@kv_bits_option
@threads_option
@json_option
def command(model: str, system: str | None, max_tokens: int, threads: int | None, **options: Any) -> None:
    """Talk to a model: a line of yours is a turn. Ctrl-C stops an answer, Ctrl-D ends the conversation.

    The cache of keys and values is kept between turns, so that each turn only reads what is new. A model without a
    chat template goes on from what is written as plain text.
    """
    as_json = options.pop("as_json")
    with activity("loading the model"):
        prepare_kernels(threads)
        from llmq.runtime import load

        loading = {name: options.pop(name) for name in ("compute", "kv_bits", "max_memory", "context", "mlock")}
        loaded = load(model, **loading)
        talk = loaded.chat(system)
    turns: list[dict[str, Any]] = []
    try:
        for line in _lines():
            answer = _answer(talk, line, show=not as_json, max_tokens=max_tokens, **options)
            made = talk.generation
            counts = {"prompt_tokens": made.prompt_tokens, "tokens": made.tokens} if made else {}
            turns.append({"prompt": line, "text": answer} | counts)
    except LlmqError:
        if as_json and turns:  # a turn that fails takes nothing of those before
            print_json({"turns": turns})
        raise
    if as_json:
        print_json({"turns": turns})


def _lines() -> Iterator[str]:
    """What the user writes, line by line; empty lines are passed over."""
    terminal = stdin().isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its history)
        say("Ctrl-C stops an answer, Ctrl-D ends the conversation")
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except KeyboardInterrupt:
            if not terminal:
                raise
            say("")
            continue
        except EOFError:
            say("")
            return
        if not line and not terminal:
            return
        if line.strip():
            yield line.strip()


def _answer(talk: Conversation, line: str, *, show: bool, **options: Any) -> str:
    """Stream an answer until it ends or Ctrl-C is pressed."""
    pieces: list[str] = []
    stream = cast("Generator[str, None, None]", talk.send(line, **options))
    with activity("thinking") as ready, contextlib.closing(stream):
        try:
            for piece in stream:
                pieces.append(piece)
                if show:
                    ready()
                    print_piece(piece)
        except KeyboardInterrupt:
            ready()
            say("\n(stopped)")
    if show:
        click.echo()
    return "".join(pieces)
