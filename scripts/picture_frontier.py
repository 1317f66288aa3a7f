"""The picture of docs/quality.md: divergence against size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from picture import BLUE, GREEN, GREY, ORANGE, PALE, RED, canvas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

__all__ = ["Point", "draw_frontier", "frontier"]

_LOOKS: Final[dict[tuple[str, bool], tuple[str, str, str]]] = {
    ("llmq", False): (BLUE, "o", "llmq, no data"),
    ("llmq", True): (GREEN, "o", "llmq, calibrated"),
    ("llama.cpp", False): (GREY, "s", "llama.cpp"),
    ("llama.cpp", True): (RED, "s", "llama.cpp, importance matrix"),
    ("HQQ", False): (ORANGE, "^", "HQQ"),
    ("AutoRound", True): (ORANGE, "v", "AutoRound"),
}


@dataclass(frozen=True)
class Point:
    """A quantized model: its maker, whether with data, bits per weight, divergence, and a word beside it."""

    maker: str
    calibrated: bool
    bits: float
    kl: float
    label: str = ""


def frontier(points: Sequence[Point]) -> list[Point]:
    """Keep the points that no smaller one, and no equal one, is better than; the smallest first.

    >>> found = frontier([Point("a", False, 4, 0.2), Point("a", False, 3, 0.1), Point("a", False, 5, 0.05)])
    >>> [point.bits for point in found]
    [3, 5]
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bits, p.kl)):
        if not kept or point.kl < kept[-1].kl:
            kept.append(point)
    return kept


def draw_frontier(points: Sequence[Point]) -> Figure:
    """Every model a point; of each kind, a line through those that nothing smaller of it is better than."""
    figure, (axes,) = canvas(4.6)
    for (maker, calibrated), (color, marker, name) in _LOOKS.items():
        chosen = [p for p in points if (p.maker, p.calibrated) == (maker, calibrated) and p.kl > 0]
        if not chosen:
            continue
        x, y = [p.bits for p in chosen], [p.kl for p in chosen]
        axes.scatter(x, y, s=14 if maker == "llmq" else 22, color=color, marker=marker, label=name, zorder=3)
        if maker in ("llmq", "llama.cpp"):
            best = frontier(chosen)
            axes.plot([p.bits for p in best], [p.kl for p in best], color=color, linewidth=1.0, zorder=2)
        _name(axes, chosen if calibrated else [], color)
    axes.set_yscale("log")
    axes.set(xlabel="bits per weight of the quantized linears, scales included", ylabel="KL divergence, nats")
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    if points:
        axes.legend(loc="upper right")
    return figure


def _name(axes: Any, points: Sequence[Point], color: str) -> None:
    for point in points:
        if point.label:
            place = (point.bits, point.kl)
            axes.annotate(point.label, place, (4, 3), textcoords="offset points", color=color, fontsize=7)
