"""Pictures of ranges: grids, rounding, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lesson_clipping import errors, limits, with_outliers
from lesson_ranges import TEN, asymmetric_grid, by_hand, symmetric_grid
from picture import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesson_sample import Sample

__all__ = ["draw_clipping", "draw_staircase", "draw_ten"]


def draw_ten(_sample: Sample) -> Figure:
    """Ten numbers above the grids that they round to."""
    figure, axes = canvas(3.3, 2, sharex=True)
    for ax, (name, grid) in zip(axes, (("asymmetric", asymmetric_grid), ("symmetric", symmetric_grid)), strict=True):
        scale, zero_point = grid(TEN, 4)
        _, back = by_hand(TEN, scale, zero_point, 4)
        _grid(ax, scale, zero_point)
        for x, value in zip(TEN.tolist(), back.tolist(), strict=True):
            ax.plot([x, value], [1.0, 0.13], color=BLUE, linewidth=0.9)
        ax.plot(TEN, np.ones(TEN.size), "o", color=BLUE, markersize=5)
        ax.set_title(f"{name}: s = {scale:.2f}, z = {zero_point}", loc="left")
        ax.set(ylim=(-0.75, 1.25), yticks=[])
        ax.spines["left"].set_visible(False)
    axes[-1].set(xlabel="dots: the numbers; bars: what the codes 0 to 15 stand for", xlim=(-4.9, 4.5))
    return figure


def _grid(ax: Any, scale: float, zero_point: int) -> None:
    for code in range(16):
        value = scale * (code - zero_point)
        color = RED if code == zero_point else GREY
        ax.plot([value, value], [-0.13, 0.13], color=color, linewidth=1.5)
        ax.text(value, -0.5, str(code), ha="center", va="center", fontsize=8, color=color)


def draw_staircase(_sample: Sample) -> Figure:
    """What rounding does to every number, and its error."""
    figure, (stairs, errors) = canvas(2.9, 1, 2)
    x = np.linspace(-2.4, 5.6, 1601)
    scale, zero_point = asymmetric_grid(TEN, 4)
    _, back = by_hand(x, scale, zero_point, 4)
    low, high = -zero_point * scale, (15 - zero_point) * scale
    stairs.plot(x, x, color=GREY, linewidth=0.8, linestyle="--")
    stairs.plot(x, back, color=BLUE)
    stairs.set(title="what comes back", xlabel="x")
    errors.plot(x, back - x, color=RED)
    for y in (-scale / 2, scale / 2):
        errors.axhline(y, color=GREY, linewidth=0.8, linestyle="--")
    errors.set(title="error: half a step inside, any size outside", xlabel="x")
    for ax in (stairs, errors):
        ax.axvspan(low, high, color=PALE, linewidth=0, zorder=0)
    stairs.text((low + high) / 2, -1.9, "the range", ha="center", color=INK, fontsize=8)
    return figure


def draw_clipping(_sample: Sample) -> Figure:
    """Numbers with outliers; and errors of rounding and of clipping, by where the range is cut."""
    x = with_outliers()
    figure, (counts, costs) = canvas(4.4, 2, sharex=True)
    counts.hist(np.abs(x), bins=60, color=BLUE, log=True)
    counts.set(ylabel="how many", title="sizes of 10,000 numbers, ten of them outliers")
    cuts = np.linspace(0.8, float(np.abs(x).max()), 120)
    rounding, clipping = np.array([errors(x, cut) for cut in cuts.tolist()]).T
    costs.plot(cuts, rounding, color=BLUE, label="rounding")
    costs.plot(cuts, clipping, color=ORANGE, label="clipping")
    costs.plot(cuts, rounding + clipping, color=INK, label="both")
    chosen = {
        "percentile 99": (GREEN, 0.36),
        "least squared error": (RED, 0.3),
        "percentile 99.9": (GREY, 0.24),
        "entropy": (BLUE, 0.18),
    }
    for name, limit in limits(x).items():
        color, height = chosen.get(name, (GREY, 0.36))
        for ax in (counts, costs):
            ax.axvline(limit, color=color, linewidth=1.0, linestyle="--")
        side = "left" if name in chosen else "right"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        costs.annotate(
            name,
            (limit, height),
            (4 if side == "left" else -4, 0),
            textcoords="offset points",
            ha=side,
            color=color,
            fontsize=8,
            bbox=box,
        )
    costs.set(xlabel="where a range of 4 bits is cut", ylabel="mean squared error", ylim=(0, 0.4))
    costs.legend(loc="center", bbox_to_anchor=(0.62, 0.7))
    return figure
