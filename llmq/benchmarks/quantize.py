"""`llmq bench quantize`: a checkpoint shrunk by each method, each time by a process of its own."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmq.benchmarks.child import llmq
from llmq.benchmarks.files import StreamedWeights
from llmq.benchmarks.rows import Row, Table
from llmq.benchmarks.timing import take_turns, use_threads
from llmq.errors import InputError
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from llmq.system.progress import Progress

__all__ = ["QuantizeSettings", "bench_quantize"]


@dataclass(frozen=True)
class QuantizeSettings:
    """What is measured: every combination of methods and threads.

    Parameters
    ----------
    methods : tuple of str
    threads : tuple of int
    bits, group_size : int
    runs : int
        Each figure is the median of so many.
    folder : str or None
        Where outputs go for the time being; the system's folder of temporary files by default.
    """

    methods: tuple[str, ...] = ("rtn", "mse")
    threads: tuple[int, ...] = (1,)
    bits: int = 4
    group_size: int = 64
    runs: int = 5
    folder: str | None = None


class _Quantizing:
    """A task that runs `llmq quantize` with one method and number of threads, and removes what it wrote."""

    def __init__(self, model: str, output: Path, *flags: object) -> None:
        self._arguments = ("quantize", model, "-o", output, *flags)
        self._output = output
        self.report: dict[str, Any] = {}

    def __call__(self) -> float:
        """Seconds of the run, the start of the process apart."""
        try:
            self.report = llmq(*self._arguments)
        finally:
            shutil.rmtree(self._output, ignore_errors=True)
        return float(self.report["seconds"])


def bench_quantize(model: str | Path, settings: QuantizeSettings, progress: Progress | None = None) -> Table:
    """Time `llmq quantize` and, in turn with it, how fast a kernel that only loads reads the same files.

    Checksums and the writing to disk count. The first run, which warms up, brings the files into the page cache as far
    as they fit.

    Parameters
    ----------
    model : str or Path
    settings : QuantizeSettings
    progress : Progress, optional

    Raises
    ------
    InputError
        There is no such folder.
    LlmqError
        What `llmq quantize` would raise.
    """
    progress = progress or NullProgress()
    weights = StreamedWeights(model, whole=True)
    progress.start("quantizing", (1 + len(settings.methods)) * len(settings.threads) * (settings.runs + 1), "runs")
    rows = []
    if settings.folder is not None and not Path(settings.folder).is_dir():
        raise InputError("no such folder", file=settings.folder)
    with tempfile.TemporaryDirectory(prefix="llmq-", dir=settings.folder) as folder:
        for threads in settings.threads:
            use_threads(threads)
            shared = ("--bits", settings.bits, "--group-size", settings.group_size, "--threads", threads)
            tasks = {
                method: _Quantizing(str(model), Path(folder) / "out", "--method", method, *shared)
                for method in settings.methods
            }
            timings = take_turns({"limit": weights.read, **tasks}, settings.runs, lambda: progress.advance(1))
            limit = weights.nbytes / timings["limit"].seconds
            for method, task in tasks.items():
                seconds = timings[method].seconds
                row = Row(
                    name=f"{method} {settings.bits}-bit g{settings.group_size}",
                    threads=threads,
                    seconds=seconds,
                    bits=settings.bits,
                    group_size=settings.group_size,
                    bytes_per_second=weights.nbytes / seconds,
                    limit_bytes_per_second=limit,
                    peak_anon_bytes=task.report["peak_anon_bytes"],
                )
                rows.append(row)
    progress.finish()
    return Table("quantize", asdict(settings) | {"model": str(model)}, rows)
