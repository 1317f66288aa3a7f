"""`llmq.quantize`: the flags of the command as keywords."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import llmq
from llmq.architectures import decoder_config
from llmq.checkpoint.journal import Scratch
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.output_folder import clear_leftovers, refuse_same_folder
from llmq.checkpoint.source import open_source, select_copies
from llmq.checkpoint.writer import CheckpointWriter
from llmq.errors import ResourceError, UsageError
from llmq.pipeline.report import QuantizeReport
from llmq.plan import build_plan
from llmq.plan.calibrated import CALIBRATION_TOKENS, with_calibration
from llmq.plan.recipes import make_recipe
from llmq.system.files import free_bytes
from llmq.system.memory import PeakMemory
from llmq.system.progress import NullProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.checkpoint.source import FolderSource, Source
    from llmq.pipeline.calibration import Calibration
    from llmq.pipeline.run_calibrated import BlockResult
    from llmq.plan import Plan
    from llmq.spec import Override, Watch

__all__ = ["quantize"]

_log = logging.getLogger("llmq")


@dataclass(frozen=True)
class _Run:
    """How a plan is carried out; nothing here changes a byte of the result."""

    output: Path
    max_shard_size: int
    max_memory: int | None
    threads: int | None
    nonfinite: str
    overwrite: bool
    resume: bool
    progress: Progress
    watch: Watch | None = None


def quantize(
    model: str | Path,
    output: str | Path,
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = True,
    range: str = "full",  # noqa: A002  (the flag's name)
    method: str | None = None,
    calibrate: str | Path | None = None,
    calibrate_tokens: int | None = None,
    lm_head: int | str | None = None,
    embeddings: int | str = "keep",
    ignore: Sequence[str] = (),
    overrides: Sequence[str | Override] = (),
    target: str = "llmq",
    max_memory: int | None = None,
    max_shard_size: int = 5_000_000_000,
    threads: int | None = None,
    nonfinite: str = "error",
    revision: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> QuantizeReport:
    """Shrink a checkpoint: stream it, quantize its linears, write a compressed-tensors folder.

    Parameters
    ----------
    model : str or Path
        A folder, a `.safetensors` file, or a Hub repository `org/name[@revision]`.
    output : str or Path
        Folder to write. Running a finished one again does nothing; an interrupted one is continued.
    bits, group_size, symmetric, range : int, int, bool, {"full", "narrow"}
        See `QuantSpec`; `group_size` defaults to 64, or to what `target` needs; -1 is the whole row.
    method : str, optional
        A key of `llmq.methods.METHODS`: "mse" by default, and "gptq" where `calibrate` is given.
    calibrate : str or Path, optional
        UTF-8 text to calibrate on; methods that need one take a bundled one by default.
    calibrate_tokens : int, optional
        Tokens of it to use, 8192 by default.
    lm_head, embeddings : int or "keep"
        Bits of an untied head (8 by default) and of the embedding table (kept by default).
    ignore : sequence of str
        Regular expressions; weights whose names they find are kept.
    overrides : sequence of str or Override
        `REGEX=bits:8,group:32` each (`--set`); later ones win.
    target : {"llmq", "transformers", "vllm", "onnx"}
        Who must be able to read the result (`--for`).
    max_memory : int, optional
        Bound on the anonymous memory of the process, in bytes.
    max_shard_size : int
        Bytes of a shard.
    threads : int, optional
        Threads of the kernels; all that Numba was started with by default.
    nonfinite : {"error", "keep"}
        What to do about NaN or infinity in a weight: stop, or keep that tensor as it is.
    revision : str, optional
        Revision of a Hub repository.
    dry_run : bool
        Only plan.
    overwrite, resume : bool
        Replace what `output` holds; continue an interrupted run.
    progress : Progress, optional
        Told of the bytes read.
    watch : callable, optional
        Called for each block of rows that is quantized, with the tensor's name, the rows (float16, bfloat16 or float32)
        and the `QuantizedTensor` that they became; neither for what an interrupted run has written before, nor for
        blocks that are calibrated.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    LlmqError
        One of its subclasses; nothing half-written is ever published.
    """
    method = method or ("mse" if calibrate is None else "gptq")
    recipe = make_recipe(
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        range=range,
        method=method,
        lm_head=lm_head,
        embeddings=embeddings,
        ignore=ignore,
        overrides=overrides,
        target=target,
    )
    _check_choices(method, nonfinite, max_shard_size)
    text = _text(method, calibrate, calibrate_tokens)
    run = _Run(
        Path(output),
        max_shard_size,
        max_memory,
        threads,
        nonfinite,
        overwrite,
        resume,
        progress or NullProgress(),
        watch,
    )
    with open_source(model, revision=revision) as source:
        _check_folders(source, run.output)
        plan = build_plan(source, recipe, max_shard_size=max_shard_size, max_memory=max_memory)
        if text is not None:
            plan = with_calibration(plan, source.config, text.tokens, max_memory)
        for warning in plan.warnings:
            _log.warning(warning)
        for hint in plan.hints:
            _log.info("hint: %s", hint)
        if dry_run:
            return _report(run, plan, source, "dry run")
        calibration = text.read(source) if text else None
        return _quantize(run, plan, source, calibration)


def _check_choices(method: str, nonfinite: str, max_shard_size: int) -> None:
    if max_shard_size < 1:
        raise UsageError("--max-shard-size must be positive", found=max_shard_size)
    from llmq.methods import METHODS

    for flag, value, choices in (("--method", method, list(METHODS)), ("--nonfinite", nonfinite, ["error", "keep"])):
        if value not in choices:
            raise UsageError(f"unknown {flag}", expected="/".join(choices), found=value)


@dataclass(frozen=True)
class _Text:
    """What to calibrate on."""

    path: Path | None
    tokens: int

    def read(self, source: FolderSource) -> Calibration:
        """Read it, as tokens of the model."""
        from llmq.pipeline.calibration import read_calibration

        return read_calibration(source.folder, decoder_config(source.config), self.path, self.tokens)


def _text(method: str, calibrate: str | Path | None, tokens: int | None) -> _Text | None:
    """What a method is calibrated on, if it is."""
    from llmq.methods import METHODS

    if METHODS[method].needs == "nothing":
        if calibrate is None and tokens is None:
            return None
        calibrated = "/".join(name for name, found in METHODS.items() if found.needs != "nothing")
        raise UsageError(f"--calibrate: {method} needs no data", hint=f"--method {calibrated}")
    if tokens is not None and tokens < 1:
        raise UsageError("--calibrate-tokens must be positive", found=tokens)
    return _Text(None if calibrate is None else Path(calibrate), tokens or CALIBRATION_TOKENS)


def _quantize(run: _Run, plan: Plan, source: Source, calibration: Calibration | None) -> QuantizeReport:
    identity = _identity(run, plan, source, calibration)
    if not run.overwrite and _already_complete(run.output, identity):
        clear_leftovers(run.output)
        return _report(run, plan, source, "already complete")
    _check_disk(run, plan)
    _set_threads(run.threads)
    began = time.perf_counter()
    with PeakMemory() as memory:
        if run.nonfinite == "keep":
            plan = _without_nonfinite(run, plan, source)
        blocks = _write(run, plan, source, identity, calibration)
    return replace(
        _report(run, plan, source, "quantized"),
        calibration=calibration,
        blocks=blocks,
        seconds=time.perf_counter() - began,
        peak_anon_bytes=memory.peak_anon,
        peak_rss_bytes=memory.peak_rss,
        memory=tuple(memory.series),
    )


def _write(
    run: _Run, plan: Plan, source: Source, identity: dict[str, Any], calibration: Calibration | None
) -> tuple[BlockResult, ...]:
    from llmq.pipeline.run import NonfiniteError, bytes_to_read, run_plan

    copies, _ = select_copies(source)
    blocks: tuple[BlockResult, ...] = ()
    with CheckpointWriter(
        run.output, plan.shards, identity=identity, overwrite=run.overwrite, resume=run.resume
    ) as writer:
        try:
            if calibration is None:
                run.progress.start("quantizing", bytes_to_read(plan, writer))
                run_plan(plan, source, writer, run.progress, nonfinite=run.nonfinite, watch=run.watch)
                run.progress.finish()
            else:
                from llmq.pipeline.run_calibrated import run_calibrated

                blocks = run_calibrated(
                    plan, source, writer, run.progress, calibration=calibration, nonfinite=run.nonfinite
                )
        except NonfiniteError:
            writer.discard()
            raise
        writer.commit(plan.config, copies)
    return blocks


def _without_nonfinite(run: _Run, plan: Plan, source: Source) -> Plan:
    from llmq.pipeline.run import nonfinite_tensors

    run.progress.start("looking for NaN and infinity", sum(t.info.nbytes for t in plan.quantized))
    keep = nonfinite_tensors(plan, source, run.progress)
    run.progress.finish()
    for name in sorted(keep):
        _log.warning("%s holds NaN or infinity and is kept as it is", name)
    return build_plan(source, plan.recipe, max_shard_size=run.max_shard_size, max_memory=run.max_memory, keep=keep)


def _identity(run: _Run, plan: Plan, source: Source, calibration: Calibration | None) -> dict[str, Any]:
    """What must be the same for an earlier run to be continued: source, settings, version."""
    settings = asdict(plan.recipe) | {"max_shard_size": run.max_shard_size, "nonfinite": run.nonfinite}
    if calibration is not None:
        settings["calibration"] = calibration.identity()
    identity = {"llmq_version": llmq.__version__, "settings": settings, "source": source.identity()}
    return cast("dict[str, Any]", json.loads(json.dumps(identity)))


def _check_folders(source: Source, output: Path) -> None:
    single_file = Path(source.label).is_file()
    if not single_file or (output.exists() and output.samefile(source.folder)):
        refuse_same_folder(source.folder, output)
    if output.exists() and not output.is_dir():
        raise UsageError("output is not a folder", file=output)


def _already_complete(output: Path, identity: dict[str, Any]) -> bool:
    """Whether the output is finished and was made of this source by these settings, by whatever version."""
    manifest = read_manifest(output) if output.is_dir() else None
    return manifest is not None and all(manifest.get(key) == identity[key] for key in ("settings", "source"))


def _check_disk(run: _Run, plan: Plan) -> None:
    nearest = next(p for p in (run.output.resolve(), *run.output.resolve().parents) if p.exists())
    free = free_bytes(nearest) + _taken_bytes(run.output)
    if plan.output_bytes > free:
        raise ResourceError(
            "not enough disk", file=run.output, expected=f"{plan.output_bytes} bytes", found=f"{free} bytes free"
        )


def _taken_bytes(output: Path) -> int:
    """Bytes on the disk that an interrupted run has written already, or that are removed before this one writes."""
    scratch = Scratch(output)
    if not scratch.folder.is_dir():
        return 0
    # Without a manifest, shards in the output itself are those of a commit that was cut short.
    published = () if (output / MANIFEST).exists() else output.glob("*.safetensors")
    return sum(path.stat().st_size for path in (*scratch.shards.glob("*"), *published) if path.is_file())


def _set_threads(threads: int | None) -> None:
    if threads is None:
        return
    from llmq_kernels.jit import set_threads

    try:
        set_threads(threads)
    except ValueError as error:
        raise UsageError(f"--threads: {error}") from None


def _report(run: _Run, plan: Plan, source: Source, state: str) -> QuantizeReport:
    _, skipped = select_copies(source)
    return QuantizeReport(run.output, plan, state, 0.0, 0, 0, skipped)
