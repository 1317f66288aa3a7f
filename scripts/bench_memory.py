"""Measure what docs/memory.md shows, and write its tables: a 70B from the Hub to tokens, and how memory grows.

python scripts/bench_memory.py [SECTION]... [--folder bench-models] [--page FILE]

The 70B is made as it is asked for by serve_checkpoint.py, so that only what is quantized takes disk: 22 GB at 2 bits,
39 GB at 4. All sections take about two hours on two cores, and 24 GiB of memory; each can be measured alone, and what
was measured before is kept in memory.json, in the folder. Run it on a quiet machine, as root to empty the page cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.benchmarks.child import llmq
from llmq.benchmarks.rows import describe_machine
from llmq.benchmarks.sampling import Sampler
from llmq.cli.sizes import format_size
from llmq.sample import write_sample
from llmq.system.files import atomic_write
from llmq.system.memory import total_memory
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Bench", "render"]

_PAGE: Final = Path(__file__).parents[1] / "docs" / "memory.md"
_PROMPT: Final = (
    "Once there was a city by the sea whose people built ships, and every ship had a name that nobody had given before."
)
_TABLE: Final = ("--lm-head", "8", "--embeddings", "8")
_LIMITS: Final = (8, 14, 20)
"""GiB that the 4-bit model runs in."""


@dataclass(frozen=True)
class Bench:
    """Measures sections.

    Parameters
    ----------
    folder : Path
        Holds models and results.
    layers : int or None
        Decoder blocks of the 70B: fewer where the disk does not suffice.
    preset : str
        Of `make_checkpoint.PRESETS`: what stands for the 70B.
    """

    folder: Path
    layers: int | None = None
    preset: str = "llama3-70b"

    @property
    def results(self) -> dict[str, Any]:
        """What was measured so far, by section."""
        path = self.folder / "memory.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def keep(self, section: str, found: Any) -> None:
        """Keep what a section gave."""
        text = json.dumps(self.results | {section: found}, indent=1)
        atomic_write(self.folder / "memory.json", text.encode())

    def quantized(self, bits: int) -> dict[str, Any]:
        """Estimate and quantize the 70B from a server; the result stays in the folder."""
        output = self.folder / f"70b-{bits}"
        shutil.rmtree(output, ignore_errors=True)
        with _served(self.preset, self.layers), _disk_used(self.folder) as used:
            flags = ("--embeddings", "8", "-o", output)
            predicted = llmq("estimate", "random/model", "--bits", bits, *flags)["options"][0]
            report = llmq("quantize", "random/model", "-o", output, "--bits", bits, *_TABLE)
        return {"predicted": predicted, "report": _without_tensors(report), "disk_bytes": used[0]}

    def running(self) -> dict[str, Any]:
        """Run the 2-bit model within 24 GiB, and measure it beside plain reads of the same bytes."""
        model = self.folder / "70b-2"
        made = _generate(model, 24, 24)
        (row,) = (
            row
            for row in llmq("bench", "generate", model, "-p", 16, "--context", 64, "-t", os.cpu_count(), "-r", 5)[
                "rows"
            ]
            if row["name"].startswith("decode")
        )
        return {"generate": made, "decode": row, "bytes": _size(model)}

    def streaming(self) -> list[dict[str, Any]]:
        """Run the 4-bit model in several limits, plainly mapped before and after, the page cache emptied each time."""
        model = self.folder / "70b-4"
        limits = [None, *_LIMITS, None]
        found = []
        for limit in limits:
            _empty_cache()
            click.echo(f"running in {limit or 'no limit'} GiB", err=True)
            found.append({"limit": limit, **_generate(model, limit or 1024, 6)})
        return found

    def sizes(self) -> list[dict[str, Any]]:
        """Quantize checkpoints of 1, 4 and 16 GB, each from a folder; a first run compiles the kernels."""
        found = []
        for layers in (1, 1, 9, 38):
            with self._checkpoint(layers) as source:
                predicted = llmq("estimate", source, "--bits", 4, "-o", self.folder)["options"][0]
                report = llmq("quantize", source, "-o", self.folder / "out", "--overwrite")
            found.append(_without_tensors(report) | {"predicted_seconds": predicted["seconds"]})
            shutil.rmtree(self.folder / "out")
        return found[1:]

    def budgets(self) -> list[dict[str, Any]]:
        """Quantize a checkpoint of 4 GB within several limits, from a folder and from a server."""
        found = []
        limits = ("256MiB", "1GiB", "8GiB")
        with self._checkpoint(9) as source:
            found += [self._limited(source, limit) | {"from": "folder", "asked": limit} for limit in limits]
        with _served("llama-7b", 9):
            found += [self._limited("random/model", limit) | {"from": "server", "asked": limit} for limit in limits]
        with self._served_copy() as source:
            found.append(self._limited(source, "1GiB") | {"from": "the server's files in a folder", "asked": "1GiB"})
        return found

    def _limited(self, source: Path | str, limit: str) -> dict[str, Any]:
        output = self.folder / "out"
        report = _without_tensors(llmq("quantize", source, "-o", output, "--overwrite", "--max-memory", limit))
        digest = hashlib.sha256()
        for path in sorted(output.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        shutil.rmtree(output)
        return report | {"digest": digest.hexdigest()[:12]}

    @contextlib.contextmanager
    def _served_copy(self) -> Iterator[Path]:
        """The files that the server of `budgets` would give, in a folder."""
        from huggingface_hub import snapshot_download

        target = self.folder / "served"
        with _served("llama-7b", 9):
            endpoint = os.environ["HF_ENDPOINT"]
            snapshot_download("random/model", local_dir=target, endpoint=endpoint)
        try:
            yield target
        finally:
            shutil.rmtree(target)

    @contextlib.contextmanager
    def _checkpoint(self, layers: int) -> Iterator[Path]:
        """A random checkpoint of the shape of a 7B Llama, for the time being."""
        path = self.folder / "source"
        shutil.rmtree(path, ignore_errors=True)
        script = Path(__file__).with_name("make_checkpoint.py")
        subprocess.run([sys.executable, script, "llama-7b", path, "--layers", str(layers)], check=True)
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def peer(self) -> dict[str, Any]:
        """Quantize the same checkpoint of 4 GB by ours and by llm-compressor, which loads the model as a whole."""
        with self._checkpoint(9) as source:
            output = self.folder / "out"
            ours = _without_tensors(llmq("quantize", source, "-o", output, "--method", "rtn", "--overwrite"))
            shutil.rmtree(output)
            script = str(Path(__file__).with_name("peer_oneshot.py"))
            command = [os.environ.get("PEER_PYTHON", sys.executable), script]
            process = subprocess.Popen([*command, str(source), str(output)], stdout=subprocess.PIPE, text=True)
            with process, Sampler(process.pid) as sampler:
                told, _ = process.communicate()
        if process.returncode:
            raise click.ClickException("the peer failed; PEER_PYTHON names a Python that has llmcompressor")
        shutil.rmtree(output)
        peak = max(sample.anon for sample in sampler.samples)
        return {"ours": ours, "theirs": json.loads(told.splitlines()[-1]) | {"peak_anon_bytes": peak}}


def _generate(model: Path, limit: int, tokens: int) -> dict[str, Any]:
    """Make some tokens, one pass over the weights for each."""
    found = llmq("generate", model, "-p", _PROMPT, "-m", tokens, "--speculate", 0, "--max-memory", f"{limit}GiB")
    return {key: value for key, value in found.items() if key != "text"}


def _without_tensors(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("tensors", "warnings", "output")}


def _size(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _empty_cache() -> None:
    os.sync()
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


@contextlib.contextmanager
def _served(preset: str, layers: int | None) -> Iterator[None]:
    """Serve a random checkpoint, and let the client of the Hub find it."""
    script = Path(__file__).with_name("serve_checkpoint.py")
    fewer = ("--layers", str(layers)) if layers else ()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sample = write_sample(folder / "sample")
        command = [sys.executable, str(script), preset, *fewer, "--tokenizer", str(sample)]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)
        assert server.stdout is not None
        server.stdout.readline()
        address = server.stdout.readline().strip().partition("=")[2]
        before = {name: os.environ.get(name) for name in ("HF_ENDPOINT", "HF_HOME")}
        os.environ.update({"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextlib.contextmanager
def _disk_used(folder: Path) -> Iterator[list[int]]:
    """The most that the disk's use grows by, in a list of one, while the block runs."""
    free, most, stop = shutil.disk_usage(folder).free, [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            most[0] = max(most[0], free - shutil.disk_usage(folder).free)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _of(predicted: float, measured: float, form: Callable[[float], str] = format_size) -> list[str]:
    return [form(predicted), form(measured), f"{measured / predicted:.2f}"]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def _render_quantized(found: dict[str, Any], section: str) -> list[list[str]]:
    predicted, report = found["predicted"], found["report"]
    what = f"{section[-1]} bits"
    return [
        [what, "tensors of the output", *_of(predicted["output_bytes"], report["output_bytes"])],
        [what, "disk taken while quantizing", *_of(predicted["disk_bytes"], found["disk_bytes"])],
        [what, "peak anonymous memory", *_of(predicted["peak_bytes"], report["peak_anon_bytes"])],
        [what, "time", *_of(predicted["seconds"], report["seconds"], _minutes)],
    ]


def render(results: dict[str, Any]) -> dict[str, str]:
    """Tables of the page, by section, of what was measured."""
    pages = {}
    rows = [
        row
        for name in ("quantize-2", "quantize-4")
        if name in results
        for row in _render_quantized(results[name], name)
    ]
    if "run" in results:
        made, decode = results["run"]["generate"], results["run"]["decode"]
        rows.append(["2 bits", "memory while it runs", *_of(made["predicted_peak_bytes"], made["peak_rss_bytes"])])
        limit = decode["limit_bytes_per_second"] / decode["bytes_per_second"] * decode["tokens_per_second"]
        rows.append(["2 bits", "tokens/s, by plain reads", *_of(limit, decode["tokens_per_second"], "{:.3g}".format)])
    if rows:
        pages["whole"] = table(("70B", "what", "predicted", "measured", "ratio"), rows)
    if "streaming" in results:
        pages["streaming"] = _render_streaming(results["streaming"])
    if "sizes" in results:
        sizes = [
            [format_size(r["source_bytes"]), format_size(r["peak_anon_bytes"]), format_size(r["predicted_peak_bytes"]),
             f"{r['seconds']:.0f} s", f"{r['predicted_seconds']:.0f} s"] for r in results["sizes"]
        ]  # fmt: skip
        pages["sizes"] = table(("checkpoint", "peak anonymous memory", "predicted", "time", "predicted time"), sizes)
    if "budgets" in results:
        budgets = [
            [r["from"], r["asked"], format_size(r["peak_anon_bytes"]), f"{r['seconds']:.0f} s", f"`{r['digest']}`"]
            for r in results["budgets"]
        ]
        pages["budgets"] = table(("from", "`--max-memory`", "peak", "time", "bytes of the output"), budgets)
    if "peer" in results:
        ours, theirs = results["peer"]["ours"], results["peer"]["theirs"]
        peers = [
            ["llmq, rtn", format_size(ours["peak_anon_bytes"]), f"{ours['seconds']:.0f} s"],
            [theirs["name"], format_size(theirs["peak_anon_bytes"]), f"{theirs['seconds']:.0f} s"],
        ]
        pages["peer"] = table(
            (f"{format_size(ours['source_bytes'])} checkpoint", "peak anonymous memory", "time"), peers
        )
    return pages


def _render_streaming(found: list[dict[str, Any]]) -> str:
    mapped = [r["tokens_per_second"] for r in found if r["limit"] is None]
    plain = sum(mapped) / len(mapped)
    rows = []
    for r in found:
        what = "plain mapping" if r["limit"] is None else f"{r['limit']} GiB"
        staying = r["blocks"] - r["streamed_blocks"]
        rows.append(
            [
                what,
                "-" if r["limit"] is None else f"{staying} of {r['blocks']}",
                format_size(r["peak_rss_bytes"]),
                "-" if r["limit"] is None else format_size(r["predicted_peak_bytes"]),
                f"{r['tokens_per_second']:.4f}",
                f"{r['tokens_per_second'] / plain:.2f}",
                f"{r['prompt_seconds']:.0f} s",
            ]
        )
    heads = ("`--max-memory`", "blocks that stay", "peak memory", "predicted", "tokens/s", "against mapping", "prompt")
    return table(heads, rows)


def _machine() -> str:
    machine = describe_machine()
    memory = format_size(total_memory())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {os.cpu_count()} cores, {memory} of memory; {machine['system']}; {versions}."


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-models"))
@click.option("--page", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=_PAGE)
@click.option("--layers", type=click.IntRange(min=1), help="Decoder blocks of the 70B.  [default: 80]")
def main(sections: tuple[str, ...], folder: Path, page: Path, layers: int | None) -> None:
    """Measure SECTIONs (quantize-2, run, quantize-4, streaming, sizes, budgets, peer; all by default), write the page.

    With the section `page` alone, only the page is written, of what was measured before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, layers)
    work: dict[str, Callable[[], Any]] = {
        "quantize-2": lambda: bench.quantized(2),
        "run": bench.running,
        "quantize-4": lambda: bench.quantized(4),
        "streaming": bench.streaming,
        "sizes": bench.sizes,
        "budgets": bench.budgets,
        "peer": bench.peer,
    }
    unknown = [name for name in sections if name not in (*work, "page")]
    if unknown:
        raise click.UsageError(f"no such section: {unknown[0]} (there are {', '.join(work)}, page)")
    for name in [name for name in sections or work if name != "page"]:
        click.echo(f"measuring {name}", err=True)
        bench.keep(name, work[name]())
    text = put(page.read_text(encoding="utf-8"), "machine", _machine())
    for name, content in render(bench.results).items():
        text = put(text, name, content)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
