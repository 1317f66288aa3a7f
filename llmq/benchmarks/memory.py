"""`llmq bench memory`: what a run takes of the memory, stage by stage, in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from llmq.benchmarks import stages
from llmq.benchmarks.child import python
from llmq.benchmarks.generate import width_of
from llmq.benchmarks.rows import Row, Table
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.system.progress import Progress

__all__ = ["MemorySettings", "bench_memory"]

_NAMES: Final = {
    stages.FIRST_MATMUL: "Python and kernels",
    stages.LOAD: "loading",
    stages.PROMPT: "prompt",
    stages.TOKENS: "making tokens",
}


@dataclass(frozen=True)
class MemorySettings:
    """What is measured.

    Parameters
    ----------
    prompt, tokens : int
        Tokens that are read and made.
    threads : tuple of int
    runs : int
        The largest peak of so many counts.
    """

    prompt: int = 512
    tokens: int = 32
    threads: tuple[int, ...] = (1,)
    runs: int = 1


def bench_memory(model: str | Path, settings: MemorySettings, progress: Progress | None = None) -> Table:
    """Measure the peaks of memory while a model is loaded, reads a prompt and makes tokens.

    Parameters
    ----------
    model : str or Path
    settings : MemorySettings
    progress : Progress, optional

    Raises
    ------
    LlmqError
        The model cannot be loaded.
    """
    progress = progress or NullProgress()
    progress.start("running", len(settings.threads) * settings.runs, "runs")
    bits, group_size = width_of(model)
    rows = []
    for threads in settings.threads:
        taken = []
        for _ in range(settings.runs):
            arguments = ("-m", stages.__name__, str(model), str(settings.prompt), str(settings.tokens))
            taken.append(python(*arguments, environment={"NUMBA_NUM_THREADS": str(threads)}))
            progress.advance(1)
        for stage, name in _NAMES.items():
            tokens = {stages.PROMPT: settings.prompt, stages.TOKENS: settings.tokens}.get(stage)
            row = Row(
                name=name,
                threads=threads,
                seconds=min(run[stage]["seconds"] for run in taken),
                bits=bits,
                group_size=group_size,
                tokens=tokens,
                peak_anon_bytes=max(run[stage]["peak_anon"] for run in taken),
                peak_rss_bytes=max(run[stage]["peak_rss"] for run in taken),
            )
            rows.append(row)
    progress.finish()
    return Table("memory", asdict(settings) | {"model": str(model)}, rows)
