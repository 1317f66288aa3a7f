"""Measure everything that docs/performance.md shows, and write its tables.

python scripts/update_performance.py [SECTION]... [--folder bench-models] [--types Q4_0,Q4_K] [--page PAGE]

Takes an hour or two on two cores; a section at a time can be renewed. Peers that are not installed are left out.
Another page, such as that of another machine, may have some of the sections.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import llvmlite.binding

from bench_peers import Options, Result, compare, types_option, versions
from llmq.benchmarks.child import llmq, python
from llmq.benchmarks.rows import describe_machine
from llmq.cli.sizes import format_size
from pages import put, table
from peer_integer import compare_layers
from peer_models import COUNTERPARTS, Models, quantized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"

_KIND: Final = "Q4_0"
"""Names the checkpoint of ours that is looked at alone: 4 bits in groups of 64, a head of 8 bits."""


def bench(name: str, *flags: object) -> list[dict[str, Any]]:
    """Rows of a benchmark of `llmq bench`."""
    words = " ".join(map(str, flags))
    click.echo(f"$ llmq bench {name} {words}", err=True)
    rows: list[dict[str, Any]] = llmq("bench", name, *flags)["rows"]
    return rows


def figures(rows: Sequence[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """A table of some figures of rows, by the headings of its columns."""
    return table(tuple(columns), [[show(row) for show in columns.values()] for row in rows])


def _number(key: str, form: str, scale: float = 1.0) -> Callable[[dict[str, Any]], str]:
    return lambda row: "-" if row[key] is None else format(row[key] / scale, form)


def _size(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "-" if row[key] is None else format_size(row[key])


_WHAT: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "what": lambda row: str(row["name"]),
    "threads": lambda row: str(row["threads"]),
}
_TOKENS: Final = {"tokens": _number("tokens", ".0f")}
_MILLISECONDS: Final = {"ms": lambda row: f"{1000 * row['seconds']:.2f}"}
_RATIO: Final = {
    "GB/s": _number("bytes_per_second", ".1f", 1e9),
    "plain read": _number("limit_bytes_per_second", ".1f", 1e9),
    "ratio": _number("ratio", ".2f"),
}
_OPERATIONS: Final = {"GOP/s": _number("operations_per_second", ".0f", 1e9)}
_RATE: Final = {"tokens/s": _number("tokens_per_second", ".1f")}


def machine_section(_options: Options) -> str:
    """Processor and versions."""
    found = describe_machine()
    parts = {**found["versions"], **{name: version for name, version in versions().items() if version}}
    features = " ".join(found["features"])
    programs = ", ".join(f"{name} {version}" for name, version in parts.items())
    return f"{found['cpu']}, {features}; {found['system']}.\n{programs}."


def decode_section(_options: Options) -> str:
    """One token, every width."""
    rows = bench("matmul", "--tokens", 1)
    rows += bench("matmul", "--tokens", 1, "--bits", "7,6,5,3,1", "--group-size", 64)
    return figures(rows, _WHAT | _MILLISECONDS | _RATIO)


def avx2_section(_options: Options) -> str:
    """One token and many, with everything beyond AVX2 masked."""
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx512f") and not features.get("avxvnni"):
        return "This machine has nothing beyond AVX2: the tables above are for it."
    kept = {name: has and not name.startswith(("avx512", "avxvnni", "avx10")) for name, has in features.items()}
    masked = ",".join(f"{'+' if has else '-'}{name}" for name, has in sorted(kept.items()))
    rows = []
    for flags in (("--tokens", "1"), ("--tokens", "128,512", "--bits", "8,4", "-r", "3")):
        words = ("-m", "llmq", "-q", "bench", "matmul", "--group-size", "64", *flags, "--json")
        rows += python(*words, environment={"NUMBA_CPU_FEATURES": masked})["rows"]
    return figures(rows, _WHAT | _TOKENS | _MILLISECONDS | _RATIO | _OPERATIONS)


def tokens_section(_options: Options) -> str:
    """Growth with tokens."""
    rows = bench("matmul", "--tokens", "1,2,4,8,16,32,64,128,256,512", "--bits", "8,4", "--group-size", 64, "-r", 3)
    return figures(rows, _WHAT | _TOKENS | _MILLISECONDS | _OPERATIONS)


def context_section(options: Options) -> str:
    """Growth with the context."""
    contexts = "64,512,1024,2048,4096"
    rows = bench("generate", options.models.counterpart(_KIND), "--context", contexts, "-p", "128,512,2048", "-r", 3)
    for bits in (8, 4):
        narrow = bench(
            "generate", options.models.counterpart(_KIND), "--context", contexts, "-p", 128, "-r", 3, "--kv-bits", bits
        )
        rows += [row | {"name": f"{bits}-bit cache, {row['name']}"} for row in narrow if "decode" in row["name"]]
    return figures(rows, _WHAT | _RATE | _MILLISECONDS | _RATIO)


def size_section(options: Options) -> str:
    """Growth with the model."""
    rows = []
    for layers in (2, 4, 8):
        packed = quantized(options.models.random(layers), options.models.folder, COUNTERPARTS[_KIND])
        size = llmq("inspect", packed)
        label = f"{layers} layers, {format_size(size['total_bytes'])}"
        measured = bench("generate", packed, "--context", 64, "-p", 128, "-r", 3)
        rows += [row | {"name": f"{label}: {row['name']}"} for row in measured]
    return figures(rows, _WHAT | _RATE | _MILLISECONDS | _RATIO)


def quantize_section(options: Options) -> str:
    """Our methods beside the read limit."""
    rows = bench("quantize", options.models.checkpoint(), "--folder", options.models.folder, "-r", 3)
    return figures(rows, _WHAT | {"s": _number("seconds", ".2f")} | _RATIO | {"anonymous": _size("peak_anon_bytes")})


def memory_section(options: Options) -> str:
    """Peaks of memory, stage by stage."""
    rows = bench("memory", options.models.counterpart(_KIND), "-t", 2)
    return figures(rows, _WHAT | {"anonymous": _size("peak_anon_bytes"), "resident": _size("peak_rss_bytes")})


def start_section(options: Options) -> str:
    """Starts of processes."""
    rows = bench("generate", options.models.counterpart(_KIND), "--context", 64, "-p", 8, "--start", "-r", 3, "-t", 2)
    return figures([row for row in rows if "start" in row["name"]], _WHAT | {"s": _number("seconds", ".2f")})


def peers_matmul_section(options: Options) -> str:
    """Beside ONNX Runtime and torch."""
    return pivot(compare(["matmul"], replace(options, group_sizes=(64, 128))), lambda r: f"{1000 * r.seconds:.2f} ms")


def peers_generate_section(options: Options) -> str:
    """Beside llama.cpp."""
    results = compare(["generate"], options)
    for result in results:
        result.contestant = result.contestant.partition(" ")[0]
    return pivot(results, lambda r: f"{r.tokens / r.seconds:.1f} tokens/s")


def peers_quantize_section(options: Options) -> str:
    """Beside `llama-quantize`."""
    return pivot(compare(["quantize"], options), lambda r: f"{r.seconds:.2f} s")


def pivot(results: Sequence[Result], show: Callable[[Result], str]) -> str:
    """A line for each task and number of threads, a column for each contestant with how many times ours it took."""
    names = list(dict.fromkeys(result.contestant for result in results))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        size = f", {format_size(result.nbytes)}" if result.nbytes and result.level == "generate" else ""
        times = "" if result.times_ours in (None, 1.0) else f" ({result.times_ours:.2f}x)"
        lines.setdefault((result.task, str(result.threads)), {})[result.contestant] = f"{show(result)}{times}{size}"
    return table(("what", "threads", *names), [(*key, *(row.get(n, "-") for n in names)) for key, row in lines.items()])


def integer_section(_options: Options) -> str:
    """Integer layers beside ONNX Runtime and torch."""
    return pivot(compare_layers(), lambda r: f"{1000 * r.seconds:.2f} ms")


SECTIONS: Final[dict[str, Callable[[Options], str]]] = {
    "machine": machine_section,
    "decode": decode_section,
    "avx2": avx2_section,
    "tokens": tokens_section,
    "context": context_section,
    "size": size_section,
    "quantize": quantize_section,
    "memory": memory_section,
    "start": start_section,
    "peers-matmul": peers_matmul_section,
    "peers-generate": peers_generate_section,
    "peers-quantize": peers_quantize_section,
    "integer": integer_section,
}
"""What makes the content of each section of the page."""


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--folder", type=click.Path(path_type=Path), default="bench-models", help="Where models are kept.")
@types_option
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=PAGE, help="The page to write.")
def main(sections: tuple[str, ...], folder: Path, types: tuple[str, ...], page: Path) -> None:
    """Measure SECTIONS, all by default, and write their tables into the page, one after the other."""
    options = Options(models=Models(folder), types=types, runs=3)
    for section in sections or SECTIONS:
        content = SECTIONS[section](options)
        page.write_text(put(page.read_text(encoding="utf-8"), section, content), encoding="utf-8")
        click.echo(f"{section}: written", err=True)


if __name__ == "__main__":
    main()
