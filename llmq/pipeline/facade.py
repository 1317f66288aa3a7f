"""`llmq.quantize`: the flags of the command as keywords."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import RECIPE_FILE
from llmq.checkpoint.output_folder import clear_leftovers
from llmq.checkpoint.remote_source import ChecksumError
from llmq.checkpoint.source import open_local, open_source, select_copies
from llmq.checkpoint.writer import CheckpointWriter
from llmq.errors import ResourceError, UsageError
from llmq.formats.fp8 import dequantized
from llmq.pipeline.outputs import already_complete, check_disk, check_folders, earlier_choice, identity_of
from llmq.pipeline.report import QuantizeReport
from llmq.pipeline.texts import choose_texts
from llmq.pipeline.threads import use_threads
from llmq.plan import build_plan
from llmq.plan.calibrated import with_calibration
from llmq.plan.goals import make_goal
from llmq.plan.process import remember_kernels
from llmq.plan.recipe_files import check_replay, recipe_json, replay_recipe
from llmq.plan.recipes import make_recipe
from llmq.spec import Assigned
from llmq.system.memory import PeakMemory, process_limit
from llmq.system.progress import NullProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llmq.checkpoint.source import Source
    from llmq.pipeline.calibration import Calibration
    from llmq.pipeline.edges import EdgeCounts
    from llmq.pipeline.run_calibrated import BlockResult
    from llmq.pipeline.texts import Texts
    from llmq.plan import Plan
    from llmq.spec import Override, Recipe, Watch

__all__ = ["quantize"]

_log = logging.getLogger("llmq")

_LEAST_BYTES: Final = 256 << 20
"""Of memory where nobody set a limit: a run in so little is not refused, whatever the machine seems to have free."""


@dataclass(frozen=True)
class _Run:
    """How a plan is carried out; nothing here changes a byte of the result.

    `max_memory` is the limit that somebody set; where nobody did, `machine` bounds the rows held at a time, and decides
    nothing else: what a machine happens to have free must not show in the result.
    """

    output: Path
    max_shard_size: int
    max_memory: int | None
    machine: int
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
    bits: int | None = None,
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
    target_size: int | None = None,
    target_bpw: float | None = None,
    ram: int | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
    importance: str | None = None,
    recipe: str | Path | None = None,
    max_memory: int | None = None,
    max_shard_size: int = 5_000_000_000,
    threads: int | None = None,
    nonfinite: str = "error",
    revision: str | None = None,
    download: bool = False,
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
        A folder, a `.safetensors` file, a Hub repository `org/name[@revision]`, or the address of a folder such as
        `s3://bucket/model`.
    output : str or Path
        Folder to write. Running a finished one again does nothing; an interrupted one is continued.
    bits, group_size, symmetric, range : int, int, bool, {"full", "narrow"}
        See `QuantSpec`; 4 bits by default, and groups of 64 or what `target` needs; -1 is the whole row.
    method : str, optional
        A key of `llmq.methods.METHODS`: "mse" by default, and "gptq" where `calibrate` is given.
    calibrate : str or Path, optional
        UTF-8 text to calibrate on; methods that need one take a bundled one by default.
    calibrate_tokens : int, optional
        Tokens of it to use, 8192 by default.
    lm_head, embeddings : int or "keep"
        Bits of an untied head (8 by default) and of the embedding table (kept by default); "auto" lets the target
        size or width choose.
    ignore : sequence of str
        Regular expressions; weights whose names they find are kept.
    overrides : sequence of str or Override
        `REGEX=bits:8,group:32` each (`--set`); later ones win.
    target : {"llmq", "transformers", "vllm", "onnx"}
        Who must be able to read the result (`--for`).
    target_size, target_bpw : int, float, optional
        Choose widths of 2 to 8 bits and group sizes tensor by tensor, so that all weight files together take at most
        so many bytes; or that the quantized linears, scales included, take so many bits per weight.
    ram, context, kv_bits : int, optional
        The same for bytes that weights, a cache of `context` tokens at `kv_bits` (16 by default) and the process take
        together while the model runs.
    importance : {"measured", "priors"}, optional
        What tells how much a tensor's error matters to a target: a text taken through the model (`calibrate`, or a
        bundled one), or fixed numbers. By default the text, if the model can be run.
    recipe : str or Path, optional
        `recipe.json` of an earlier output, or its folder: every tensor gets what it got there.
    max_memory : int, optional
        Bound on the anonymous memory of the process, in bytes; what the machine has free by default.
    max_shard_size : int
        Bytes of a shard.
    threads : int, optional
        Threads of the kernels; all that Numba was started with by default.
    nonfinite : {"error", "keep"}
        What to do about NaN or infinity in a tensor: stop, or keep it as it is.
    revision : str, optional
        Revision of a Hub repository.
    download : bool
        Download a Hub repository into the Hugging Face cache first; else its weights are read by ranges, and nothing
        of them is kept.
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
    goal = make_goal(
        target_size=target_size,
        target_bpw=target_bpw,
        ram=ram,
        context=context,
        kv_bits=kv_bits,
        group_size=group_size,
        target=target,
    )
    if recipe is not None:
        beside = {
            "--bits": bits, "--group-size": group_size, "--asymmetric": not symmetric, "--range": range != "full",
            "--lm-head": lm_head, "--embeddings": embeddings != "keep", "--ignore": ignore, "--set": overrides,
            "--for": target != "llmq", "--target-size, --target-bpw or --ram": goal,
        }  # fmt: skip
        wanted = replay_recipe(Path(recipe), method, beside=beside)
    else:
        wanted = make_recipe(
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            range=range,
            method=method or ("mse" if calibrate is None else "gptq"),
            lm_head=lm_head,
            embeddings=embeddings,
            ignore=ignore,
            overrides=overrides,
            target=target,
            goal=goal,
        )
    _check_choices(wanted.method, nonfinite, max_shard_size)
    texts = choose_texts(wanted, calibrate, calibrate_tokens, importance)
    run = _Run(
        Path(output),
        max_shard_size,
        max_memory,
        max(_LEAST_BYTES, process_limit()),
        threads,
        nonfinite,
        overwrite,
        resume,
        progress or NullProgress(),
        watch,
    )
    opener = open_local if download else open_source
    with opener(model, revision=revision) as opened:
        source = dequantized(opened)
        check_folders(source, run.output)
        select_copies(source)  # what cannot be carried over is told now
        began = time.perf_counter()
        with PeakMemory() as memory:
            report = _planned(run, wanted, source, texts, dry_run=dry_run)
    if report.state != "quantized":
        return report
    return replace(
        report,
        seconds=time.perf_counter() - began,
        peak_anon_bytes=memory.peak_anon,
        peak_rss_bytes=memory.peak_rss,
        memory=tuple(memory.series),
    )


def _planned(run: _Run, recipe: Recipe, source: Source, texts: Texts, *, dry_run: bool) -> QuantizeReport:
    plan = _build(run, recipe, source)
    if recipe.assigned:
        check_replay(plan, source.label)
    if texts.method is not None:
        plan = with_calibration(plan, source.config, texts.method.tokens, run.max_memory)
    calibration = texts.method.read(source) if texts.method and not dry_run else None
    importance, plan = texts.for_shares(source, plan, run.max_memory, calibration)
    identify = partial(
        identity_of,
        source=source,
        choices={"max_shard_size": run.max_shard_size, "nonfinite": run.nonfinite},
        calibration=calibration,
        importance=importance,
    )
    if recipe.goal is not None:
        plan = _mixed(run, plan, source, importance, identify(recipe))
        if texts.method is not None:
            plan = with_calibration(plan, source.config, texts.method.tokens, run.max_memory)
    for warning in plan.warnings:
        _log.warning(warning)
    for hint in plan.hints:
        _log.info("hint: %s", hint)
    if dry_run:
        return _report(run, plan, source, "dry run")
    return _quantize(run, plan, source, calibration, identify(plan.recipe))


def _mixed(run: _Run, plan: Plan, source: Source, importance: Calibration | None, identity: dict[str, Any]) -> Plan:
    """Choose widths as an earlier run did, or by measuring."""
    peak, free = plan.predicted_peak_bytes, plan
    assigned = earlier_choice(run.output, identity, overwrite=run.overwrite, resume=run.resume)
    if assigned:
        plan = _build(run, replace(plan.recipe, assigned=assigned), source)
    else:
        from llmq.pipeline.mixed import mixed_plan

        use_threads(run.threads)
        keep = _nonfinite(run, plan, source) if run.nonfinite == "keep" else frozenset()
        kept = tuple(Assigned(name, None) for name in sorted(keep))
        plan = _build(run, plan.recipe, source, keep)
        plan = mixed_plan(
            plan,
            source,
            run.progress,
            importance=importance,
            max_memory=run.max_memory,
            build=lambda choice: _build(run, replace(free.recipe, assigned=choice + kept), source),
        )
    return replace(plan, predicted_peak_bytes=max(peak, plan.predicted_peak_bytes))


def _build(run: _Run, recipe: Recipe, source: Source, keep: Collection[str] = ()) -> Plan:
    build = partial(build_plan, source, recipe, max_shard_size=run.max_shard_size, keep=keep)
    if run.max_memory is not None:
        return build(max_memory=run.max_memory)
    try:
        return build(max_memory=run.machine)
    except ResourceError:  # nobody asked for so little
        return build(max_memory=None)


def _check_choices(method: str, nonfinite: str, max_shard_size: int) -> None:
    if max_shard_size < 1:
        raise UsageError("--max-shard-size must be positive", found=max_shard_size)
    from llmq.methods import METHODS
    from llmq.pipeline.tuning import check_torch

    for flag, value, choices in (("--method", method, list(METHODS)), ("--nonfinite", nonfinite, ["error", "keep"])):
        if value not in choices:
            raise UsageError(f"unknown {flag}", expected="/".join(choices), found=value)
    check_torch(method)


def _quantize(
    run: _Run, plan: Plan, source: Source, calibration: Calibration | None, identity: dict[str, Any]
) -> QuantizeReport:
    if not run.overwrite and already_complete(run.output, identity):
        clear_leftovers(run.output)
        return _report(run, plan, source, "already complete")
    check_disk(run.output, plan)
    use_threads(run.threads)
    if run.nonfinite == "keep" and plan.recipe.goal is None:
        plan = _build(run, plan.recipe, source, _nonfinite(run, plan, source))
    blocks, edges = _write(run, plan, source, identity, calibration)
    return replace(_report(run, plan, source, "quantized"), calibration=calibration, blocks=blocks, edges=edges)


def _write(
    run: _Run, plan: Plan, source: Source, identity: dict[str, Any], calibration: Calibration | None
) -> tuple[tuple[BlockResult, ...], dict[str, EdgeCounts]]:
    from llmq.pipeline.run import NonfiniteError, bytes_to_read, run_plan

    copies, _ = select_copies(source)
    blocks: tuple[BlockResult, ...] = ()
    with CheckpointWriter(
        run.output, plan.shards, identity=identity, overwrite=run.overwrite, resume=run.resume
    ) as writer:
        try:
            if calibration is None:
                run.progress.start("quantizing", bytes_to_read(plan, writer))
                edges = run_plan(plan, source, writer, run.progress, nonfinite=run.nonfinite, watch=run.watch)
                run.progress.finish()
            else:
                from llmq.pipeline.run_calibrated import run_calibrated

                blocks, edges = run_calibrated(
                    plan, source, writer, run.progress, calibration=calibration, nonfinite=run.nonfinite
                )
        except (NonfiniteError, ChecksumError):
            writer.discard()
            raise
        remember_kernels(plan.tensors, plan.recipe.method)
        writer.commit(plan.config, copies | {RECIPE_FILE: json_strict.dumps(recipe_json(plan))})
    return blocks, edges


def _nonfinite(run: _Run, plan: Plan, source: Source) -> frozenset[str]:
    from llmq.pipeline.run import nonfinite_tensors

    run.progress.start("looking for NaN and infinity", sum(t.info.nbytes for t in plan.quantized))
    keep = nonfinite_tensors(plan, source, run.progress)
    run.progress.finish()
    for name in sorted(keep):
        _log.warning("%s holds NaN or infinity and is kept as it is", name)
    return keep


def _report(run: _Run, plan: Plan, source: Source, state: str) -> QuantizeReport:
    _, skipped = select_copies(source)
    return QuantizeReport(run.output, plan, state, 0.0, 0, 0, skipped, max_memory=run.max_memory or run.machine)
