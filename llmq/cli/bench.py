"""`llmq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from llmq.cli.kernels import prepare_kernels
from llmq.cli.options import compute_option, json_option, kv_bits_option, model_argument
from llmq.cli.output import print_json, print_table
from llmq.cli.progress import show_progress
from llmq.cli.sizes import SIZE, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.benchmarks.rows import Row, Table

__all__ = ["command"]

_Command = TypeVar("_Command", bound="Callable[..., Any]")


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers separated by commas, each within bounds."""

    name = "n,n"

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        self._one: click.ParamType[int] = click.IntRange(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read a value from the command line."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(self._one(part, param, ctx) for part in str(value).split(",")))


class _Shape(click.ParamType[tuple[int, int]]):
    """Rows and columns, such as `4096x11008`."""

    name = "rowsxcolumns"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read a value from the command line."""
        if isinstance(value, tuple):
            return value
        rows, _, columns = value.partition("x")
        if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
            self.fail(f"{value!r} is not a shape such as 4096x11008", param, ctx)
        return int(rows), int(columns)


_COUNTS: Final = _Numbers()
_RUNS: Final = "Runs of each task, after one that does not count."


def _shared(runs: int) -> Callable[[_Command], _Command]:
    """`--threads`, `--runs` with its default, and `--json`."""

    def decorate(command: _Command) -> _Command:
        count = click.IntRange(min=1)
        numbers = "Numbers of threads to measure with.  [default: 1 and all]"
        command = json_option(command)
        command = click.option("-r", "--runs", type=count, default=runs, show_default=True, metavar="N", help=_RUNS)(
            command
        )
        return click.option("-t", "--threads", type=_COUNTS, metavar="N,N", help=numbers)(command)

    return decorate


@click.group(short_help="Measure the speed of matmul, generation and quantizing, and memory.")
def command() -> None:
    """Measure how fast this machine runs kernels, models and the quantizer, beside what its memory allows.

    Every figure is the median of several runs after one that warms up. In turn with them a kernel that does nothing but
    load reads the same weights: its rate is the limit, and a ratio of 1 means that nothing could read them faster.
    """


@command.command("matmul")
@click.option("--bits", type=_Numbers(1, 8), default=(8, 4, 2), metavar="N,N", help="Widths.  [default: 8,4,2]")
@click.option(
    "--group-size", "group_sizes", type=_COUNTS, default=(32, 64, 128), metavar="N,N", help="[default: 32,64,128]"
)
@click.option(
    "--tokens",
    type=_COUNTS,
    default=(1, 128, 512),
    metavar="N,N",
    help="Tokens that go through at once.  [default: 1,128,512]",
)
@click.option("--shape", type=_Shape(), default=(4096, 11008), metavar="ROWSxCOLUMNS", help="[default: 4096x11008]")
@click.option("--symmetric/--asymmetric", default=True, show_default=True, help="Without or with zero points.")
@click.option(
    "--scale-dtype", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", show_default=True
)
@click.option("--working-set", type=SIZE, default="1.2GB", show_default=True, help="Bytes of weights, used in turn.")
@compute_option("int8")
@_shared(runs=5)
def _matmul(as_json: bool, **settings: Any) -> None:
    """Time the packed matmul on random weights, too many for any cache."""
    settings["threads"] = _prepare(settings["threads"])
    from llmq.benchmarks.matmul import MatmulSettings, bench_matmul

    with show_progress() as progress:
        table = bench_matmul(MatmulSettings(**settings), progress)
    _show(table, as_json, _RATES)


@command.command("generate")
@model_argument
@click.option(
    "-p",
    "--prompt",
    "prompts",
    type=_COUNTS,
    default=(128, 512),
    metavar="N,N",
    help="Tokens of prompts.  [default: 128,512]",
)
@click.option(
    "--context",
    "contexts",
    type=_COUNTS,
    default=(64, 4096),
    metavar="N,N",
    help="Tokens in the cache.  [default: 64,4096]",
)
@click.option("--start", is_flag=True, help="Start processes too, with kernels to compile and without.")
@compute_option("int8")
@kv_bits_option
@_shared(runs=5)
def _generate(model: str, as_json: bool, **settings: Any) -> None:
    """Time reading prompts, and making tokens at several contexts.

    The seconds of a prefill are the time to the first token. What is longer than the model's own context is
    left out.
    """
    settings["threads"] = _prepare(settings["threads"])
    from llmq.benchmarks.generate import GenerateSettings, bench_generate

    with show_progress() as progress:
        table = bench_generate(model, GenerateSettings(**settings), progress)
    _show(table, as_json, _RATES)


@command.command("quantize")
@model_argument
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("rtn", "mse"),
    metavar="NAME",
    help="Repeatable.  [default: rtn, mse]",
)
@click.option("--bits", type=click.IntRange(1, 8), default=4, show_default=True, help="Bits of a code.")
@click.option("--group-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@click.option(
    "--folder", metavar="DIR", help="Where outputs go for the time being.  [default: that of temporary files]"
)
@_shared(runs=3)
def _quantize(model: str, as_json: bool, **settings: Any) -> None:
    """Time shrinking a checkpoint by each method: reading, checksums and writing to disk included."""
    settings["threads"] = _prepare(settings["threads"])
    from llmq.benchmarks.quantize import QuantizeSettings, bench_quantize

    with show_progress() as progress:
        table = bench_quantize(model, QuantizeSettings(**settings), progress)
    _show(table, as_json, _SIZES)


@command.command("memory")
@model_argument
@click.option("--bits", type=click.IntRange(1, 8), help="Quantize to so many bits first.  [default: run it as it is]")
@click.option("--group-size", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="Of that.")
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Limit of quantizing and of running.")
@click.option("-p", "--prompt", type=click.IntRange(min=1), default=512, show_default=True, metavar="N", help="Read.")
@click.option("-m", "--tokens", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="Made.")
@click.option(
    "--folder",
    metavar="DIR",
    help="Where the quantized model goes for the time being.  [default: that of temporary files]",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw memory over time: .png, .svg or .pdf."
)
@_shared(runs=1)
def _memory(model: str, as_json: bool, plot: Path | None, **settings: Any) -> None:
    """Measure memory while a model is quantized, loaded, reads a prompt and makes tokens, beside what was predicted.

    Anonymous memory is the process's own; resident memory counts mapped files too, which the system drops when others
    need their room.
    """
    from llmq.benchmarks.plot import check_plot, save_memory

    if plot is not None:
        check_plot(plot)
    settings["threads"] = _prepare(settings["threads"])
    from llmq.benchmarks.memory import MemorySettings, bench_memory

    with show_progress() as progress:
        table = bench_memory(model, MemorySettings(**settings), progress)
    if plot is not None:
        save_memory(table, plot)
    _show(table, as_json, _SIZES)


def _prepare(asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """Make kernels ready for the numbers of threads that are asked for; one and all of them by default."""
    prepare_kernels(max(asked) if asked else None)
    from llmq_kernels.jit import threads

    return asked or tuple(dict.fromkeys((1, threads())))


def _figure(form: str, scale: float = 1.0) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else format(value / scale, form)


def _bytes(value: float | None) -> str:
    return "-" if value is None else format_size(value)


_COMMON: Final[dict[str, tuple[str, Callable[[Any], str]]]] = {
    "": ("name", str),
    "threads>": ("threads", str),
    "tokens>": ("tokens", _figure(".0f")),
    "seconds>": ("seconds", _figure(".4g")),
}
_RATES: Final = _COMMON | {
    "GB/s>": ("bytes_per_second", _figure(".2f", 1e9)),
    "limit>": ("limit_bytes_per_second", _figure(".2f", 1e9)),
    "ratio>": ("ratio", _figure(".2f")),
    "GOP/s>": ("operations_per_second", _figure(".1f", 1e9)),
    "tokens/s>": ("tokens_per_second", _figure(".1f")),
    "J/token>": ("joules_per_token", _figure(".3g")),
}
_SIZES: Final = _COMMON | {
    "GB/s>": ("bytes_per_second", _figure(".2f", 1e9)),
    "limit>": ("limit_bytes_per_second", _figure(".2f", 1e9)),
    "anonymous>": ("peak_anon_bytes", _bytes),
    "resident>": ("peak_rss_bytes", _bytes),
    "predicted>": ("predicted_peak_bytes", _bytes),
    "pss>": ("peak_pss_bytes", _bytes),
}


def _show(table: Table, as_json: bool, columns: dict[str, tuple[str, Callable[[Any], str]]]) -> None:
    """Print a table, without the columns that are empty throughout."""
    if as_json:
        print_json(table.to_json())
        return
    used = {head: c for head, c in columns.items() if any(getattr(row, c[0]) is not None for row in table.rows)}
    print_table(tuple(used), [_cells(row, used) for row in table.rows])
    machine = table.machine
    click.echo()
    click.echo(f"{machine['cpu']} ({' '.join(machine['features'])})")
    click.echo(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))


def _cells(row: Row, columns: dict[str, tuple[str, Callable[[Any], str]]]) -> list[str]:
    return [form(getattr(row, field)) for field, form in columns.values()]
