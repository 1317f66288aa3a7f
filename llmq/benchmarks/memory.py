"""`llmq bench memory`: what quantizing and running take of the memory, stage by stage, in processes of their own."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.benchmarks import stages
from llmq.benchmarks.child import watched
from llmq.benchmarks.generate import width_of
from llmq.benchmarks.rows import Row, Table
from llmq.errors import InputError
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from llmq.benchmarks.sampling import Sample, Sampler
    from llmq.system.progress import Progress

__all__ = ["MemorySettings", "MemoryTable", "Timeline", "bench_memory"]

_NAMES: Final = {
    stages.FIRST_MATMUL: "Python and kernels",
    stages.LOAD: "loading",
    stages.PROMPT: "prompt",
    stages.TOKENS: "making tokens",
}
_QUANTIZING: Final = "quantizing"


@dataclass(frozen=True)
class MemorySettings:
    """What is measured.

    Parameters
    ----------
    bits : int or None
        Quantize to so many bits first, and run what comes of it; None runs the model as it is.
    group_size : int
        Of that.
    max_memory : int or None
        `--max-memory` of both.
    prompt, tokens : int
        Tokens that are read and made.
    threads : tuple of int
    runs : int
        The largest peak of so many counts.
    folder : str or None
        Where the quantized model goes for the time being; the system's folder of temporary files by default.
    """

    bits: int | None = None
    group_size: int = 64
    max_memory: int | None = None
    prompt: int = 512
    tokens: int = 32
    threads: tuple[int, ...] = (1,)
    runs: int = 1
    folder: str | None = None


@dataclass(frozen=True)
class Timeline:
    """Memory of one process over time.

    Parameters
    ----------
    name : str
        Quantizing or running.
    threads : int
    stages : tuple of (float, str)
        When each began, in seconds since the first sample, and its name.
    samples : tuple of (float, int, int)
        Seconds since the first, anonymous bytes, and resident bytes of mapped files.
    predicted : int or None
        Bytes, as in `Row.predicted_peak_bytes`.
    """

    name: str
    threads: int
    stages: tuple[tuple[float, str], ...]
    samples: tuple[tuple[float, int, int], ...]
    predicted: int | None


@dataclass(frozen=True)
class MemoryTable(Table):
    """The rows of the benchmark, and the course of its processes: for each, of the run with the highest peak."""

    timelines: list[Timeline] = field(default_factory=list)


def bench_memory(model: str | Path, settings: MemorySettings, progress: Progress | None = None) -> MemoryTable:
    """Measure the peaks of memory while a model is quantized, if asked, loaded, reads a prompt and makes tokens.

    Parameters
    ----------
    model : str or Path
    settings : MemorySettings
    progress : Progress, optional

    Raises
    ------
    InputError
        There is no such folder for what is quantized.
    LlmqError
        The model cannot be quantized or loaded.
    """
    progress = progress or NullProgress()
    each = 1 if settings.bits is None else 2
    progress.start("running", each * len(settings.threads) * settings.runs, "runs")
    table = MemoryTable("memory", asdict(settings) | {"model": str(model)}, [])
    if settings.folder is not None and not Path(settings.folder).is_dir():
        raise InputError("no such folder", file=settings.folder)
    with tempfile.TemporaryDirectory(prefix="llmq-", dir=settings.folder) as folder:
        for threads in settings.threads:
            path: str | Path = model
            if settings.bits is not None:
                path = Path(folder) / "out"
                taken = []
                for _ in range(settings.runs):
                    taken.append(_quantize(model, path, settings, threads))
                    progress.advance(1)
                _add_quantizing(table, settings, threads, taken)
            taken = []
            for _ in range(settings.runs):
                taken.append(_run(path, settings, threads))
                progress.advance(1)
            _add_running(table, path, settings, threads, taken)
    progress.finish()
    return table


def _limit(settings: MemorySettings) -> tuple[str, ...]:
    return () if settings.max_memory is None else (str(settings.max_memory),)


def _quantize(
    model: str | Path, output: Path, settings: MemorySettings, threads: int
) -> tuple[dict[str, Any], Sampler]:
    limit = ("--max-memory", *_limit(settings)) if settings.max_memory is not None else ()
    flags = ("--bits", str(settings.bits), "--group-size", str(settings.group_size), "--threads", str(threads))
    words = ("quantize", str(model), "-o", str(output), "--overwrite", *flags, *limit, "--json")
    return watched("-m", "llmq", "-q", *words)


def _run(model: str | Path, settings: MemorySettings, threads: int) -> tuple[dict[str, Any], Sampler]:
    words = (str(model), str(settings.prompt), str(settings.tokens), *_limit(settings))
    return watched("-m", stages.__name__, *words, environment={"NUMBA_NUM_THREADS": str(threads)})


def _add_quantizing(
    table: MemoryTable, settings: MemorySettings, threads: int, taken: list[tuple[dict[str, Any], Sampler]]
) -> None:
    report, sampler = max(taken, key=lambda one: one[0]["peak_anon_bytes"])
    row = Row(
        name=_QUANTIZING,
        threads=threads,
        seconds=min(one["seconds"] for one, _ in taken),
        bits=settings.bits,
        group_size=settings.group_size,
        peak_anon_bytes=report["peak_anon_bytes"],
        peak_rss_bytes=report["peak_rss_bytes"],
        predicted_peak_bytes=report["predicted_peak_bytes"],
        peak_pss_bytes=sampler.peak_pss,
        cgroup_peak_bytes=sampler.cgroup_peak,
    )
    table.rows.append(row)
    samples = _course(sampler.samples)
    table.timelines.append(Timeline(_QUANTIZING, threads, ((0.0, _QUANTIZING),), samples, row.predicted_peak_bytes))


def _add_running(
    table: MemoryTable,
    model: str | Path,
    settings: MemorySettings,
    threads: int,
    taken: list[tuple[dict[str, Any], Sampler]],
) -> None:
    bits, group_size = width_of(model)
    worst, sampler = max(taken, key=lambda one: max(stage["peak_rss"] for stage in one[0].values()))
    predicted = worst[stages.LOAD]["predicted"]
    for stage, name in _NAMES.items():
        last = stage == stages.TOKENS
        row = Row(
            name=name,
            threads=threads,
            seconds=min(run[stage]["seconds"] for run, _ in taken),
            bits=bits,
            group_size=group_size,
            tokens={stages.PROMPT: settings.prompt, stages.TOKENS: settings.tokens}.get(stage),
            peak_anon_bytes=max(run[stage]["peak_anon"] for run, _ in taken),
            peak_rss_bytes=max(run[stage]["peak_rss"] for run, _ in taken),
            predicted_peak_bytes=predicted if last else None,
            peak_pss_bytes=sampler.peak_pss if last else None,
            cgroup_peak_bytes=sampler.cgroup_peak if last else None,
        )
        table.rows.append(row)
    start = sampler.samples[0].time if sampler.samples else 0.0
    began = tuple((max(0.0, worst[stage]["began"] - start), name) for stage, name in _NAMES.items())
    table.timelines.append(Timeline("running", threads, began, _course(sampler.samples), predicted))


def _course(samples: list[Sample]) -> tuple[tuple[float, int, int], ...]:
    return tuple((sample.time - samples[0].time, sample.anon, sample.file) for sample in samples)
