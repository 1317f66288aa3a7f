"""The course of memory as a picture, by matplotlib: the extra `plot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.errors import InputError, UsageError
from llmq.system.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.benchmarks.memory import MemoryTable, Timeline

__all__ = ["FORMATS", "check_plot", "draw_memory", "save_memory"]

FORMATS: Final = (".png", ".svg", ".pdf")

_ANON, _FILE, _LINE, _TEXT = "#0072b2", "#9ecae1", "#b36b00", "#222222"


def check_plot(path: Path) -> None:
    """Raise UsageError at once where a picture cannot be drawn, or not as such a file; InputError where not there."""
    if path.suffix not in FORMATS:
        raise UsageError(
            "--plot writes pictures", file=path, expected=" or ".join(FORMATS), found=path.suffix or "none"
        )
    if not path.absolute().parent.is_dir():
        raise InputError("no such folder", file=path.parent)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'numba-llmq[plot]'"
        raise UsageError("--plot needs matplotlib, which is not installed", hint=hint) from None


def save_memory(table: MemoryTable, path: Path) -> None:
    """Draw all timelines of a benchmark into a file. Raises InputError where it cannot be written."""
    figure = draw_memory(table)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=path) from error


def draw_memory(table: MemoryTable) -> Any:
    """Draw a panel for each process: anonymous memory, mapped files above it, stages, and what was predicted."""
    from matplotlib.figure import Figure

    count = len(table.timelines)
    figure = Figure(figsize=(8.0, 3.0 * count), layout="constrained")
    for number, timeline in enumerate(table.timelines):
        _draw(figure.add_subplot(count, 1, number + 1), timeline, table.settings.get("max_memory"))
    return figure


def _draw(axes: Any, timeline: Timeline, limit: int | None) -> None:
    seconds = [sample[0] for sample in timeline.samples]
    anon = [sample[1] / 1e9 for sample in timeline.samples]
    total = [(sample[1] + sample[2]) / 1e9 for sample in timeline.samples]
    axes.fill_between(seconds, anon, color=_ANON, linewidth=0, label="anonymous")
    axes.fill_between(seconds, anon, total, color=_FILE, linewidth=0, label="mapped files")
    if timeline.predicted is not None:
        told = f"predicted {format_size(timeline.predicted)}"
        axes.axhline(timeline.predicted / 1e9, color=_LINE, linewidth=1.2, linestyle="--", label=told)
    highest = max([*total, (timeline.predicted or 0) / 1e9], default=1.0)
    if limit is not None and limit / 1e9 < 3 * highest:
        axes.axhline(limit / 1e9, color=_TEXT, linewidth=1.0, linestyle=":", label=f"limit {format_size(limit)}")
        highest = max(highest, limit / 1e9)
    axes.set_ylim(0, 1.25 * highest)
    axes.set_xlim(0, max(seconds, default=1.0) or 1.0)
    last = float("-inf")
    for at, name in timeline.stages[1:]:
        axes.axvline(at, color=_TEXT, linewidth=0.6, alpha=0.5)
        if at - last > 0.12 * max(seconds, default=1.0):  # names that would lie on each other are left out
            axes.annotate(f" {name}", (at, 1.2 * highest), fontsize=8, color=_TEXT, va="top")
            last = at
    threads = f"{timeline.threads} thread{'s' if timeline.threads > 1 else ''}"
    axes.set_title(f"{timeline.name}, {threads}", loc="left", fontsize=10)
    axes.set_xlabel("seconds")
    axes.set_ylabel("GB")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
