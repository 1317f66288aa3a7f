"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from llmq.cli.sizes import SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.report import Measures

__all__ = [
    "budget_options",
    "compute_option",
    "json_option",
    "kv_bits_option",
    "measures_for",
    "memory_options",
    "model_argument",
    "report_option",
    "sampling_options",
    "save_option",
    "threads_option",
]

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_COMPUTE_HELP: Final = (
    "Activations of packed layers: int8 is faster, float32 exact; docs/evaluation.md tells the difference in nats."
)


def json_option(command: _Command) -> _Command:
    """`--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def threads_option(command: _Command) -> _Command:
    """`--threads`, None by default; for `prepare_kernels`."""
    threads = click.IntRange(min=1)
    return click.option("--threads", type=threads, metavar="N", help="Threads of the kernels.  [default: all]")(command)


def budget_options(command: _Command) -> _Command:
    """What a mixture of widths is to keep to; None each by default."""
    options = (
        click.option("--target-size", type=SIZE, help="Choose widths so that all weight files fit into this."),
        click.option("--target-bpw", type=float, metavar="X", help="Choose widths for X bits a weight of the linears."),
        click.option("--ram", type=SIZE, help="Choose widths so that the model runs in this, with --context."),
        click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens that --ram leaves room for."),
        click.option(
            "--kv-bits",
            type=click.Choice(["32", "16", "8", "4"]),
            callback=lambda _context, _option, value: None if value is None else int(value),
            help="Bits of the cache that --ram leaves room for.  [default: 16]",
        ),
        click.option(
            "--importance",
            type=click.Choice(["measured", "priors"]),
            help="How much errors of a weight matter: measured on a text (--calibrate), or fixed.  [default: measured "
            "where the model can be run]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def compute_option(default: str) -> Callable[[_Command], _Command]:
    """`--compute` with its default."""
    choices = click.Choice(["int8", "float32"])
    return click.option("--compute", type=choices, default=default, show_default=True, help=_COMPUTE_HELP)


def kv_bits_option(command: _Command) -> _Command:
    """`--kv-bits`, a number or None by default; for `load`."""

    def number(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001
        return None if value is None else int(value)

    return click.option(
        "--kv-bits",
        type=click.Choice(["16", "8", "4"]),
        callback=number,
        help="Bits of an element of the key-value cache.  [default: 16; 32 with --compute float32]",
    )(command)


def memory_options(command: _Command) -> _Command:
    """`--max-memory` and `--mlock`, for `load`."""
    options = (
        click.option(
            "--max-memory",
            type=SIZE,
            metavar="SIZE",
            help="Bound on weights in memory, cache and process together: blocks that do not fit are read for every "
            "token.  [default: what the machine has free]",
        ),
        click.option(
            "--mlock", is_flag=True, help="Read weights that stay beforehand, and keep them from being dropped."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def report_option(command: _Command) -> _Command:
    """`--report`, given to the command as `report_file`, a path or None; refused at once where it cannot be written."""

    def checked(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:  # noqa: ARG001
        if value is not None:
            from llmq.report.page import check_writable

            check_writable(value)
        return value

    return click.option(
        "--report",
        "report_file",
        type=click.Path(path_type=Path),
        callback=checked,
        metavar="FILE.html",
        help="Write a page with tables and pictures: one file that needs no network.",
    )(command)


def measures_for(report_file: Path | None) -> Measures | None:
    """What gathers figures for a report, if one is wanted."""
    if report_file is None:
        return None
    from llmq.report import Measures

    return Measures()


def save_option(command: _Command) -> _Command:
    """`--save`, off by default: what is only read is not written to."""
    return click.option(
        "--save", is_flag=True, help="Keep the figures beside the weights, in quality.json, which inspect shows."
    )(command)


def model_argument(command: _Command) -> _Command:
    """Argument MODEL: a folder, a file or a Hub id, as text."""
    return click.argument("model", metavar="MODEL")(command)


def sampling_options(temp: float) -> Callable[[_Command], _Command]:
    """`--temp` with its default, `--top-k`, `--top-p`, `--min-p` and `--seed`: the fields of `Sampling`."""
    options = (
        click.option("--temp", type=float, default=temp, show_default=True, metavar="T", help="Temperature; 0: none."),
        click.option("--top-k", type=int, default=0, metavar="K", help="Keep the K likeliest tokens; 0: all."),
        click.option("--top-p", type=float, default=1.0, metavar="P", help="Keep the likeliest that add up to P."),
        click.option("--min-p", type=float, default=0.0, metavar="P", help="Keep those of P times the likeliest."),
        click.option("--seed", type=int, metavar="S", help="Makes sampling repeatable."),
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
