"""Measure what docs/onnx.md shows, and write its tables: agreement with llmq, memory, and errors of float models.

python scripts/bench_onnx.py [agreement] [memory] [float] [--folder bench-models] [--page FILE]

Memory is that of a random Llama of 1.1 billion parameters, 2.2 GB, and takes some ten minutes and 8 GB of disk.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.benchmarks.child import llmq, python
from llmq.benchmarks.rows import describe_machine
from llmq.cli.sizes import format_size
from llmq.sample import write_sample
from onnx_float import float_models
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SECTIONS", "main"]

_SCRIPTS: Final = Path(__file__).parent
_PAGE: Final = _SCRIPTS.parent / "docs" / "onnx.md"
_GRAPHS: Final = (
    ("2 bits, int8", 2, "int8", ()),
    ("4 bits, int8", 4, "int8", ()),
    ("8 bits, int8", 8, "int8", ()),
    ("4 bits, float32", 4, "float32", ()),
    ("bf16, not quantized", None, "int8", ()),
    ("4 bits, int8, without prepacking", 4, "int8", ("--no-prepacking",)),
)
_LONG: Final = ("--prompt", "1024")
_PROMPTS: Final = (
    ("as it comes", "all", ()),
    ("`--logits last`", "last", ()),
    ("and the prompt in calls of 256 tokens", "last", ("--piece", "256")),
    ("and `options.enable_cpu_mem_arena = False`", "last", ("--piece", "256", "--no-arena")),
)


def agreement(folder: Path) -> str:
    """Largest difference of logits from llmq's, over their range, on the bundled sample."""
    original = folder / "sample"
    shutil.rmtree(original, ignore_errors=True)
    write_sample(original)
    rows = []
    for bits in (8, 4, 2):
        model = folder / f"onnx-sample-{bits}"
        llmq("quantize", original, "-o", model, "--bits", bits, "--for", "onnx", "--overwrite")
        found = [_export(model, compute)["check"]["relative"] for compute in ("float32", "int8")]
        rows.append((f"{bits} bits", *(f"{relative:.1e}" for relative in found)))
        shutil.rmtree(model)
    return table(("weights", "`--compute float32`", "`--compute int8`"), rows)


def memory(folder: Path) -> str:
    """Memory of a process that runs a graph, beside the bytes of its files."""
    original = folder / "onnx-1b"
    if not (original / "config.json").exists():
        subprocess.run([sys.executable, str(_SCRIPTS / "make_checkpoint.py"), "llama-1b", str(original)], check=True)
    runs = [(name, *_run(folder, original, bits, compute, flags)) for name, bits, compute, flags in _GRAPHS]
    graphs = [
        (name, format_size(files["weights"]), format_size(sum(files.values())), *map(format_size, _figures(run)),
         f"{run['token_seconds']:.2f} s")
        for name, files, run in runs
    ]  # fmt: skip
    before = runs[0][2]["before"]
    packed = _packed(folder, original, 4)
    prompts = []
    for name, logits, flags in _PROMPTS:
        _export(packed, "int8", "--logits", logits)
        found = _peer(packed, *_LONG, *flags)
        prompts.append((name, format_size(found["peak"]), format_size(found["after"])))
    versions = runs[0][2]["versions"]["onnxruntime"]
    headings = ("graph", "weights on disk", "with `.data`", "loaded", "after 8 tokens", "of it anonymous", "peak",
                "CPU time a token")  # fmt: skip
    return (
        f"In fresh processes, on one thread of {describe_machine()['cpu']}, ONNX Runtime {versions}: a Llama of 1.1 "
        "billion random weights (22 blocks of width 2048, groups of 64, the head in 8 bits, 131 MB of embedding table "
        f"in bf16), 8 tokens of prompt and 8 after it. Python, NumPy and ONNX Runtime alone take {format_size(before)} "
        f"of each figure.\n\n{table(headings, graphs)}\n\nThe same model at 4 bits with int8, a prompt of 1,024 "
        f"tokens, and memory after 8 more, of which {format_size(found['cache'])} are the cache:\n\n"
        f"{table(('how', 'peak', 'afterwards'), prompts)}"
    )


def _figures(run: dict[str, Any]) -> tuple[int, ...]:
    return tuple(run[name] for name in ("loaded", "after", "anonymous", "peak"))


def _run(
    folder: Path, original: Path, bits: int | None, compute: str, flags: Sequence[str]
) -> tuple[dict[str, int], dict[str, Any]]:
    """Export and run; bytes of files by kind, and what the process told."""
    model = original if bits is None else _packed(folder, original, bits)
    click.echo(f"{model.name}, {compute} {' '.join(flags)}", err=True)
    exported = _export(model, compute)
    files = {"weights": 0, "other": 0}
    for file in exported["files"]:
        files["weights" if file["name"].endswith(".safetensors") else "other"] += file["bytes"]
    return files, _peer(model, *flags)


def _packed(folder: Path, original: Path, bits: int) -> Path:
    model = folder / f"{original.name}-{bits}"
    llmq("quantize", original, "-o", model, "--bits", bits, "--for", "onnx", "--method", "rtn")
    return model


def _export(model: Path, compute: str, *flags: str) -> dict[str, Any]:
    check = "--no-check" if "1b" in model.name else "--check"
    return llmq("export", model, "--to", "onnx", "-o", model / "model.onnx", "--compute", compute, "--overwrite",
                check, *flags)  # fmt: skip


def _peer(model: Path, *flags: str) -> dict[str, Any]:
    return python(str(_SCRIPTS / "peer_onnx.py"), str(model / "model.onnx"), *flags)


SECTIONS: Final[dict[str, Callable[[Path], str]]] = {
    "agreement": agreement,
    "memory": memory,
    "float": float_models,
}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--folder", type=click.Path(path_type=Path), default="bench-models", help="Where models go.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=_PAGE, help="The page to write.")
def main(sections: tuple[str, ...], folder: Path, page: Path) -> None:
    """Measure some sections, or all, and write them into the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sections or tuple(SECTIONS):
        made = SECTIONS[name](folder)
        click.echo(made)
        page.write_text(put(page.read_text(encoding="utf-8"), f"onnx-{name}", made), encoding="utf-8")


if __name__ == "__main__":
    main()
