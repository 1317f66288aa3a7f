"""`llmq.onnx.quantize_model`: any float ONNX model in, the same model with quantized weights out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmq.errors import UsageError
from llmq.methods import METHODS
from llmq.onnx.initializers import TensorFiles
from llmq.onnx.opsets import opset_of
from llmq.onnx.output_files import refuse_output
from llmq.onnx.planned_model import keep_nonfinite, plan_model, read_model, stored_tensors
from llmq.onnx.quantize_plan import Wishes
from llmq.onnx.quantize_report import OnnxReport
from llmq.onnx.quantize_run import STRIP_ELEMENTS
from llmq.onnx.quantize_write import write_model
from llmq.pipeline.threads import use_threads
from llmq.plan.recipes import make_recipe
from llmq.system.memory import PeakMemory, current_memory
from llmq.system.progress import NullProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.spec import Override, Recipe

__all__ = ["quantize_model"]

_ACTIVATIONS: Final = ("float", "int8")
_STRIP_BYTES: Final = 24 * STRIP_ELEMENTS
"""Of a strip of a weight: as it is read, in rows, filled up, its codes, and as they decode."""
_PROCESS_BYTES: Final = 256 << 20
"""Interpreter, NumPy, Numba with its compiler, onnx."""


@dataclass(frozen=True)
class _Run:
    """What `quantize_model` was asked for."""

    model: Path
    output: Path
    wishes: Wishes
    nonfinite: str
    dry_run: bool
    overwrite: bool
    progress: Progress


def quantize_model(
    model: str | Path,
    output: str | Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    range: str = "full",  # noqa: A002  (the flag's name)
    method: str = "mse",
    activations: str = "float",
    embeddings: int | str = "keep",
    ignore: Sequence[str] = (),
    overrides: Sequence[str | Override] = (),
    threads: int | None = None,
    nonfinite: str = "error",
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> OnnxReport:
    """Quantize the weights of an ONNX model, whatever made it, one at a time.

    Weights of `MatMul`, `Gemm` and `Conv`, and the tables of `Gather` where `embeddings` says so, are replaced;
    inputs, outputs and everything else stay as they are.

    Parameters
    ----------
    model : str or Path
        A file; its external data must lie in its folder or below.
    output : str or Path
        File to write, ending in `.onnx`; the data goes to a second one, with `.data` behind its name.
    bits : int, optional
        2, 4 or 8, and 7 with integer activations; 4 by default, and 8 with integer activations.
    group_size : int, optional
        Elements of a row that share a scale: a power of two from 16 on, 64 by default. With 7 or 8 bits and integer
        activations it is always the whole row.
    symmetric, range : bool, {"full", "narrow"}
        See `QuantSpec`.
    method : str
        A key of `llmq.methods.METHODS` that needs no data.
    activations : {"float", "int8"}
        Whether activations are quantized as the model runs: to 8 bits, with one scale for a tensor (7 and 8-bit
        weights) or for each group (2 and 4-bit weights).
    embeddings : int or "keep"
        Bits of the tables that `Gather` reads.
    ignore : sequence of str
        Regular expressions; weights are kept if one is found in their name or in that of a node that reads them.
    overrides : sequence of str or Override
        `REGEX=bits:8,group:32` each (`--set`), found in the same names; later ones win.
    threads : int, optional
        Threads of the kernels; all that Numba was started with by default.
    nonfinite : {"error", "keep"}
        What to do about NaN or infinity in a weight: stop, or keep it as it is.
    dry_run : bool
        Only plan.
    overwrite : bool
        Replace `output` and its data.
    progress : Progress, optional
        Told of the bytes read.

    Returns
    -------
    OnnxReport

    Raises
    ------
    LlmqError
        One of its subclasses; nothing half-written is ever published.
    """
    if embeddings == "auto":
        raise UsageError("--embeddings auto chooses by a target, which ONNX models do not have", hint="give its bits")
    recipe = make_recipe(
        bits=(8 if activations == "int8" else 4) if bits is None else bits,
        group_size=group_size,
        symmetric=symmetric,
        range=range,
        method=method,
        embeddings=embeddings,
        ignore=ignore,
        overrides=overrides,
        target="onnx",
    )
    _check_choices(recipe, activations, nonfinite, group_size)
    use_threads(threads)
    wishes = Wishes(recipe, integer=activations == "int8")
    run = _Run(Path(model), Path(output), wishes, nonfinite, dry_run, overwrite, progress or NullProgress())
    began = time.perf_counter()
    with PeakMemory() as memory:
        report = _quantize(run)
    if dry_run:
        return report
    return replace(
        report,
        seconds=time.perf_counter() - began,
        peak_anon_bytes=memory.peak_anon,
        peak_rss_bytes=memory.peak_rss,
    )


def _quantize(run: _Run) -> OnnxReport:
    file = read_model(run.model)
    with TensorFiles(file) as files:
        before = sum(stored.nbytes for _, stored in stored_tensors(file, files))
        refuse_output(run.output, overwrite=run.overwrite or run.dry_run, sources=files.paths)
        if not run.output.parent.is_dir():
            raise UsageError("no such folder", file=run.output.parent)
        planned = plan_model(file, run.wishes)
        if run.nonfinite == "keep" and not run.dry_run:
            planned = plan_model(file, keep_nonfinite(planned, files, run.wishes, run.progress))
        report = OnnxReport(
            run.output,
            planned.plan,
            "dry run" if run.dry_run else "quantized",
            before,
            before + sum(weight.output_bytes - weight.source_bytes for weight in planned.plan.quantized),
            (opset_of(file.proto), opset_of(planned.file.proto)),
            predicted_peak_bytes=max(current_memory().anon, _PROCESS_BYTES) + _STRIP_BYTES,
        )
        if run.dry_run:
            return report
        errors = write_model(planned, run.output, run.wishes, files, progress=run.progress, overwrite=run.overwrite)
        return replace(report, errors=errors)


def _check_choices(recipe: Recipe, activations: str, nonfinite: str, group_size: int | None) -> None:
    methods = [name for name, method in METHODS.items() if method.needs == "nothing"]
    for flag, value, choices in (
        ("--method", recipe.method, methods),
        ("--activations", activations, _ACTIVATIONS),
        ("--nonfinite", nonfinite, ("error", "keep")),
    ):
        if value not in choices:
            known = flag == "--method" and value in METHODS
            what = f"{value} needs calibration, which ONNX models do not get" if known else f"unknown {flag}"
            raise UsageError(what, expected="/".join(choices), found=None if known else value)
    if activations == "int8" and recipe.spec.bits > 4 and group_size not in (None, -1):
        raise UsageError(
            "integer products have one scale for each row", found=f"--group-size {group_size}", hint="leave it out"
        )
