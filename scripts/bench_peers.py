"""llmq beside ONNX Runtime, torch and llama.cpp: each in a process of its own, all taking turns, medians compared.

python scripts/bench_peers.py [matmul] [generate] [quantize] [--threads 1,2] [--json]

Needs what it compares with: pip install --group bench. A peer that is missing is named and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.benchmarks.rows import describe_machine
from llmq.cli.sizes import SIZE
from pages import table
from peer_child import Child, ContestantError
from peer_llama import TYPES
from peer_models import Models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LEVELS: Final = ("matmul", "generate", "quantize")
OURS: Final = "llmq"
DISTRIBUTIONS: Final = ("onnxruntime", "torch", "llama-cpp-python", "gguf")
MODULES: Final = {"ONNX Runtime": ("onnxruntime", "onnx"), "torch": ("torch",), "llama.cpp": ("llama_cpp", "gguf")}

_DECODED: Final = 8
_CONTEXT: Final = 64
_PAUSE: Final = 0.05
"""Seconds between two turns, for threads that spin a while after their work."""


@dataclass(frozen=True)
class Options:
    """The flags."""

    threads: tuple[int, ...] = (1, 2)
    runs: int = 5
    bits: tuple[int, ...] = (4, 8, 2)
    group_sizes: tuple[int, ...] = (32, 64, 128)
    tokens: tuple[int, ...] = (1, 128, 512)
    shape: tuple[int, int] = (4096, 11008)
    working_set: int = 400_000_000
    types: tuple[str, ...] = tuple(TYPES)
    models: Models = field(default_factory=lambda: Models(Path("bench-models")))


@dataclass
class Result:
    """Seconds of one contestant at one task.

    Parameters
    ----------
    level, task : str
    contestant : str
    threads : int
    seconds : float
        The median.
    nbytes : int or None
        Bytes that one matmul, or one token, reads.
    tokens : int
        Tokens that the seconds are for.
    times_ours : float or None
        Seconds over those of ours at the same task.
    """

    level: str
    task: str
    contestant: str
    threads: int
    seconds: float
    nbytes: int | None = None
    tokens: int = 1
    times_ours: float | None = field(default=None)


def say(line: str) -> None:
    """Write a line to stderr."""
    click.echo(line, err=True)


def missing() -> dict[str, str]:
    """Peers that are not installed, with the modules they lack."""
    lacking = {peer: [m for m in needed if importlib.util.find_spec(m) is None] for peer, needed in MODULES.items()}
    return {peer: ", ".join(modules) for peer, modules in lacking.items() if modules}


def alternate(tasks: dict[str, Callable[[], float]], runs: int) -> dict[str, float]:
    """Run every task once to warm up, then all in turn; the median seconds of each that did not fail."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(runs + 1):
        for name in list(taken):
            time.sleep(_PAUSE)
            try:
                seconds = tasks[name]()
            except ContestantError as error:
                say(f"left out: {name}: {error}")
                del taken[name]
                continue
            if turn:
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


@contextlib.contextmanager
def contestants(makers: dict[str, Callable[[], Child]]) -> Iterator[dict[str, Child]]:
    """Start processes one after the other; those that cannot be made are told and left out."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, make in makers.items():
            try:
                found[name] = stack.enter_context(make())
            except ContestantError as error:
                say(f"left out: {name}: {error}")
        yield found


# --- matmul -----------------------------------------------------------------------------------------------------


def bench_matmul(options: Options, absent: dict[str, str]) -> Iterator[Result]:
    """Time one matmul of every width, group size, number of tokens and of threads."""
    cases = [
        (bits, group_size, tokens, threads)
        for threads in options.threads
        for tokens in options.tokens
        for bits in options.bits
        for group_size in options.group_sizes
    ]
    for bits, group_size, tokens, threads in cases:
        task = f"{bits}-bit g{group_size}, {tokens} token{'s' if tokens > 1 else ''}"
        say(f"matmul: {task}, {threads} threads")
        makers = matmul_makers(options, (bits, group_size, tokens, threads), absent)
        with contestants(makers) as found:
            tasks = {name: _calling(child, "run") for name, child in found.items()}
            if OURS in found:
                tasks["plain read of our bytes"] = _calling(found[OURS], "read")
            seconds = alternate(tasks, options.runs)
            sizes = {name: int(child.call("bytes_of_matrix")) for name, child in found.items() if name in seconds}
        results = [
            Result("matmul", task, name, threads, value, sizes.get(name, sizes.get(OURS)), tokens)
            for name, value in best_of_spinning(seconds).items()
        ]
        yield from compared(results)


def matmul_makers(
    options: Options, case: tuple[int, int, int, int], absent: dict[str, str]
) -> dict[str, Callable[[], Child]]:
    """How to start the contestants of a case: `(bits, group size, tokens, threads)`."""
    bits, group_size, tokens, threads = case
    shared: dict[str, Any] = {
        "shape": options.shape,
        "bits": bits,
        "group_size": group_size,
        "tokens": tokens,
        "threads": threads,
        "working_set": options.working_set,
    }
    makers: dict[str, Callable[[], Child]] = {OURS: partial(Child, "peer_matmul", "LlmqMatmul", **shared)}
    if "ONNX Runtime" not in absent:
        makers["ONNX Runtime"] = partial(Child, "peer_matmul", "OrtMatmul", **shared)
        if threads > 1:
            makers["ONNX Runtime spinning"] = partial(Child, "peer_matmul", "OrtMatmulSpinning", **shared)
    if "torch" not in absent and bits == 4:
        makers["torch"] = partial(Child, "peer_matmul", "TorchMatmul", **shared)
    return makers


def best_of_spinning(seconds: dict[str, float]) -> dict[str, float]:
    """Keep the better of a contestant with and without spinning threads, under the plain name."""
    best = {name: value for name, value in seconds.items() if not name.endswith(" spinning")}
    for name, value in seconds.items():
        plain = name.removesuffix(" spinning")
        best[plain] = min(value, best.get(plain, value))
    return best


def _calling(child: Child, method: str, **arguments: Any) -> Callable[[], float]:
    return lambda: float(child.call(method, **arguments))


def compared(results: list[Result]) -> list[Result]:
    """Fill in how many times ours each took."""
    ours = next((r.seconds for r in results if r.contestant.startswith(OURS)), None)
    for result in results:
        result.times_ours = result.seconds / ours if ours else None
    return results


# --- generate and quantize --------------------------------------------------------------------------------------


def bench_generate(options: Options, absent: dict[str, str]) -> Iterator[Result]:
    """Time prompts of several lengths and decoding, for every type of llama.cpp and our counterpart of it."""
    if "llama.cpp" in absent:
        return
    prompts = tuple(n for n in options.tokens if n > 1)
    for kind in options.types:
        theirs, ours = str(options.models.gguf(kind)), str(options.models.counterpart(kind))
        for threads in options.threads:
            say(f"generate: {kind}, {threads} threads")
            room = max((_CONTEXT, *prompts))
            makers: dict[str, Callable[[], Child]] = {
                OURS: partial(Child, "peer_llmq", "LlmqModel", path=ours, threads=threads),
                f"llama.cpp {kind}": partial(
                    Child, "peer_llama", "LlamaCpp", path=theirs, threads=threads, context=room
                ),
            }
            with contestants(makers) as found:
                yield from generate_results(found, options.runs, prompts, threads)


def generate_results(found: dict[str, Child], runs: int, prompts: tuple[int, ...], threads: int) -> Iterator[Result]:
    """Let two models take turns, task by task."""
    sizes = {name: int(child.call("streamed_bytes")) for name, child in found.items()}
    peer = next((name for name in found if name != OURS), OURS)
    tasks: dict[str, tuple[str, int, dict[str, int]]] = {
        f"decode at {_CONTEXT}": ("decode", _DECODED, {"context": _CONTEXT, "tokens": _DECODED})
    }
    tasks |= {f"prefill {n}": ("prefill", n, {"tokens": n}) for n in prompts}
    for task, (method, tokens, arguments) in tasks.items():
        turns = {name: _calling(child, method, **arguments) for name, child in found.items()}
        seconds = alternate(turns, runs)
        label = f"{task}, beside {peer.removeprefix('llama.cpp ')}"
        yield from compared(
            [
                Result("generate", label, name, threads, value, sizes[name] if method == "decode" else None, tokens)
                for name, value in seconds.items()
            ]
        )


def bench_quantize(options: Options, absent: dict[str, str]) -> Iterator[Result]:
    """Time shrinking the checkpoint by our methods and, from float16, to Q4_0."""
    model, folder = options.models.checkpoint(), options.models.folder
    for threads in options.threads:
        say(f"quantize: {threads} threads")
        makers: dict[str, Callable[[], Child]] = {}
        for method in ("rtn", "mse"):
            places = {"source": str(model), "output": str(folder / "quantized")}
            makers[f"{OURS} {method}"] = partial(
                Child, "peer_llmq", "LlmqQuantizer", **places, method=method, threads=threads
            )
        if "llama.cpp" not in absent:
            places = {"source": str(options.models.float_gguf()), "output": str(folder / "quantized.gguf")}
            makers["llama.cpp Q4_0"] = partial(
                Child, "peer_llama", "LlamaQuantizer", **places, kind="Q4_0", threads=threads
            )
        with contestants(makers) as found:
            seconds = alternate({name: _calling(child, "run") for name, child in found.items()}, options.runs)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        yield from compared(
            [Result("quantize", "4 bits", name, threads, value, size) for name, value in seconds.items()]
        )


# --- the table --------------------------------------------------------------------------------------------------

HEADINGS: Final = ("task", "threads", "contestant", "time", "tokens/s", "bytes", "GB/s", "x the time of ours")


def cells(result: Result) -> tuple[str, ...]:
    """Words of a line of the table, under `HEADINGS`."""
    matmul = result.level == "matmul"
    return (
        result.task,
        str(result.threads),
        result.contestant,
        f"{1000 * result.seconds:.2f} ms" if matmul else f"{result.seconds:.3f} s",
        "-" if matmul or result.level == "quantize" else f"{result.tokens / result.seconds:.2f}",
        "-" if result.nbytes is None else f"{result.nbytes / 1e6:.1f} MB",
        "-" if result.nbytes is None or result.tokens > _DECODED else f"{rate(result) / 1e9:.2f}",
        "-" if result.times_ours is None else f"{result.times_ours:.2f}",
    )


def rate(result: Result) -> float:
    """Bytes per second; each token of a decode reads all of them."""
    times = result.tokens if result.level == "generate" else 1
    return times * (result.nbytes or 0) / result.seconds


def versions() -> dict[str, str | None]:
    """Versions of the peers, None for those that are missing."""
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def compare(levels: Sequence[str], options: Options) -> list[Result]:
    """Measure everything that is asked for and can be had."""
    absent = missing()
    for peer, modules in absent.items():
        say(f"not installed: {peer} (no module {modules}; pip install --group bench)")
    benches = {"matmul": bench_matmul, "generate": bench_generate, "quantize": bench_quantize}
    return [result for level in levels for result in benches[level](options, absent)]


def _numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2") from None


def _types(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    found = tuple(value.split(","))
    if not set(found) <= set(TYPES):
        raise click.BadParameter(f"types are {', '.join(TYPES)}")
    return found


types_option: Final = click.option(
    "--types",
    default=",".join(TYPES),
    callback=_types,
    help="Of llama.cpp; files of some take many minutes to make.",
)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("levels", nargs=-1, type=click.Choice(LEVELS))
@click.option("-t", "--threads", default="1,2", callback=_numbers)
@click.option("-r", "--runs", default=5, type=click.IntRange(min=1))
@click.option("--bits", default="4,8,2", callback=_numbers, help="Of matmul.")
@click.option("--group-sizes", default="32,64,128", callback=_numbers, help="Of matmul.")
@click.option("--tokens", default="1,128,512", callback=_numbers, help="Of matmul; those beyond 1 are the prompts too.")
@click.option("--shape", default="4096,11008", callback=_numbers, help="Rows and columns, of matmul.")
@click.option("--working-set", type=SIZE, default="400MB", help="Bytes of weights, of matmul.")
@types_option
@click.option("--folder", type=click.Path(path_type=Path), default="bench-models", help="Where models are kept.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A Llama checkpoint; a random one if none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(levels: tuple[str, ...], as_json: bool, folder: Path, model: Path | None, **flags: Any) -> None:
    """Compare llmq with ONNX Runtime, torch and llama.cpp at LEVELS: matmul, generate, quantize; all by default."""
    flags["shape"] = flags["shape"][:2]
    results = compare(levels or LEVELS, Options(models=Models(folder, model), **flags))
    if as_json:
        found = {"machine": describe_machine(), "peers": versions(), "results": [asdict(r) for r in results]}
        click.echo(json.dumps({"schema": 1} | found, indent=2))
        return
    click.echo(table(HEADINGS, [cells(result) for result in results]))


if __name__ == "__main__":
    main()
