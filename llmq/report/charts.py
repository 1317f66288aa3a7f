"""Where things stand in a chart: memory over time, and error against size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.system.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Chart", "Level", "Mark", "Tick", "frontier", "pareto", "ticks", "timeline"]

WIDTH: Final = 720
HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 28, 44


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in pixels and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Level:
    """A horizontal line across a chart, such as a budget."""

    at: float
    text: str
    kind: str


@dataclass(frozen=True)
class Mark:
    """A point of a chart, `best` where no other is both smaller and better."""

    x: float
    y: float
    name: str
    text: str
    best: bool


@dataclass(frozen=True)
class Chart:
    """A chart, placed.

    Parameters
    ----------
    x_title, y_title : str
    x, y : tuple of Tick
    path : str
        Points of its line, as SVG's `points` takes them.
    levels : tuple of Level
    marks : tuple of Mark
    text : str
        What it shows, in a sentence, for those who do not see it.
    """

    x_title: str
    y_title: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    path: str
    text: str
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Scale:
    """Maps `low..high` to pixels `start..end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span > 0 else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them.

    >>> ticks(0.0, 47.0), ticks(5.93, 6.72)
    ([0.0, 10.0, 20.0, 30.0, 40.0], [6.0, 6.2, 6.4, 6.6])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def timeline(samples: Sequence[tuple[float, int]], levels: Mapping[str, int | None]) -> Chart | None:
    """Draw memory over time.

    Parameters
    ----------
    samples : sequence of (float, int)
        Seconds and bytes.
    levels : mapping
        Bytes by what they are: "budget" and "predicted"; None is left out.

    Returns
    -------
    Chart or None
        None where nothing was sampled.
    """
    if not samples:
        return None
    known = {name: value for name, value in levels.items() if value}
    peak, seconds = max(value for _, value in samples), max(samples[-1][0], 1e-3)
    top = 1.08 * max(peak, *known.values()) if known else 1.08 * max(peak, 1)
    x, y = _Scale(0.0, seconds, _LEFT, WIDTH - _RIGHT), _Scale(0.0, top, HEIGHT - _BOTTOM, _TOP)
    lines = tuple(Level(y(value), f"{name} {format_size(value)}", name) for name, value in known.items())
    told = "".join(f", {line.text}" for line in lines)
    return Chart(
        "seconds",
        "anonymous memory",
        tuple(Tick(x(t), f"{t:g}") for t in ticks(0.0, seconds, 8)),
        tuple(Tick(y(value), format_size(value)) for value in ticks(0.0, top)),
        " ".join(f"{x(t)},{y(value)}" for t, value in samples),
        f"Anonymous memory over {seconds:.3g} s: peak {format_size(peak)}{told}.",
        levels=lines,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats, from the smallest to the largest: neither at most as large and better, nor both.

    >>> pareto([(4.0, 0.1), (3.0, 0.5), (3.5, 0.6), (2.0, 2.0)])
    [3, 1, 0]
    """
    best, found = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            found.append(i)
    return found


def frontier(runs: Sequence[Mapping[str, Any]], error: str, title: str) -> Chart | None:
    """Draw errors against sizes, the errors on a logarithmic axis.

    Parameters
    ----------
    runs : sequence of mapping
        Each with `name`, `bits_per_weight` and, where measured, a positive `error`.
    error : str
        Key of the error.
    title : str
        What it is.

    Returns
    -------
    Chart or None
        None where fewer than two runs can be drawn.
    """
    drawn = [run for run in runs if _drawable(run, error)]
    if len(drawn) < 2:
        return None
    points = [(float(run["bits_per_weight"]), float(run[error])) for run in drawn]
    best = pareto(points)
    logs = [math.log10(value) for _, value in points]
    spare = 0.15 * (max(logs) - min(logs)) or 0.1
    low, high = min(logs) - spare, max(logs) + spare
    sizes = [size for size, _ in points]
    pad = 0.06 * (max(sizes) - min(sizes)) or 0.5
    x = _Scale(min(sizes) - pad, max(sizes) + pad, _LEFT, WIDTH - _RIGHT)
    y = _Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    marks = tuple(
        Mark(x(size), y(math.log10(value)), run["name"], f"{size:.3f} bits per weight, {value:.4g}", i in best)
        for i, (run, (size, value)) in enumerate(zip(drawn, points, strict=True))
    )
    return Chart(
        "bits per weight, every byte of the checkpoint counted",
        title,
        tuple(Tick(x(size), f"{size:g}") for size in ticks(x.low, x.high, 8)),
        tuple(Tick(y(math.log10(value)), f"{value:g}") for value in _steps(10.0**low, 10.0**high)),
        " ".join(f"{marks[i].x},{marks[i].y}" for i in best),
        f"{title} against bits per weight of {len(drawn)} runs; the line joins those that none beats in both.",
        marks=marks,
    )


def _steps(low: float, high: float) -> list[float]:
    """Values to mark on a logarithmic axis: 1, 2 and 5 times powers of ten, or evenly where those are too few.

    >>> _steps(0.03, 0.6), _steps(31.0, 34.0)
    ([0.05, 0.1, 0.2, 0.5], [31.0, 32.0, 33.0, 34.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if len(powers) < 5 else (1,)
    found = [float(f"{m}e{power}") for power in powers for m in multiples if low <= float(f"{m}e{power}") <= high]
    return found if len(found) > 2 else ticks(low, high)


def _drawable(run: Mapping[str, Any], error: str) -> bool:
    pair = (run.get("bits_per_weight"), run.get(error))
    return all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in pair)
