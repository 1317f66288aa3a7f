"""Pictures of layers: filters, ranges of activations, a layer in integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.patches import FancyBboxPatch

from lesson_layers import LAYER
from picture import BLUE, GREEN, GREY, INK, ORANGE, RED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesson_sample import Sample

__all__ = ["draw_channels", "draw_dynamic", "draw_layer"]

_EVERY: Final = 7
WEIGHT: Final = "model.layers.0.mlp.down_proj.weight"


def draw_channels(sample: Sample) -> Figure:
    """The extremes of each row of a weight, beside those of the whole."""
    weight = sample.weights[WEIGHT]
    weight = weight[np.argsort(np.abs(weight).max(axis=1))]
    rows = np.arange(weight.shape[0])
    figure, (axes,) = canvas(2.9)
    axes.fill_between(rows, weight.min(axis=1), weight.max(axis=1), color=BLUE, alpha=0.35, linewidth=0, step="mid")
    axes.fill_between(rows, -weight.std(axis=1), weight.std(axis=1), color=BLUE, alpha=0.8, linewidth=0, step="mid")
    most = float(np.abs(weight).max())
    for y in (-most, most):
        axes.axhline(y, color=RED, linewidth=1.2, linestyle="--")
    axes.text(2, most * 0.84, "one range for the whole tensor", color=RED)
    axes.text(rows[-1] * 0.5, most * 0.45, "each row: from its least to its largest", color=BLUE, ha="center")
    axes.text(rows[-1] * 0.5, -0.55 * most, "dark: their standard deviation", color=BLUE, ha="center")
    axes.set(xlabel=f"rows of {WEIGHT}, by their largest weight", ylabel="weights", xlim=(0, rows[-1]))
    return figure


def draw_dynamic(sample: Sample) -> Figure:
    """The largest activation of each token."""
    calibration, unseen = (np.abs(part).max(axis=1) for part in sample.activations(LAYER))
    figure, (axes,) = canvas(2.9)
    shown = np.arange(0, unseen.size, _EVERY)
    axes.plot(shown, calibration[shown], ".", color=GREY, markersize=4)
    axes.plot(calibration.size + shown, unseen[shown], ".", color=BLUE, markersize=4)
    axes.axhline(calibration.max(), color=RED, linewidth=1.2, linestyle="--")
    axes.text(10, calibration.max() * 1.12, "static range: the largest seen while calibrating", color=RED)
    for x, color, words in ((0.25, GREY, "calibration"), (0.75, BLUE, "unseen text: a dynamic range follows each dot")):
        axes.text(x * 2 * unseen.size, calibration.min() * 0.8, words, color=color, ha="center")
    axes.set(
        yscale="log",
        xlabel=f"tokens, every {_EVERY}th shown",
        ylabel="largest |x| of a token",
        xlim=(0, 2 * unseen.size),
    )
    axes.set(ylim=(calibration.min() * 0.65, calibration.max() * 1.6))
    return figure


_BOXES: Final = (
    (0.0, "x\nfloat32", GREY),
    (1.0, "q_x\nint8", BLUE),
    (2.0, "sums of\nq_x q_w\nint32", BLUE),
    (3.0, "+ q_b\nint32", BLUE),
    (4.0, "y\nfloat32", GREY),
)
_ARROWS: Final = ("/ s_x, round,\n+ z_x", "q_w: 8 to 1 bits", "b / (s_x s_w)", "* s_x s_w")


def draw_layer(_sample: Sample) -> Figure:
    """What a quantized layer does, and where the next one takes over."""
    figure, (axes,) = canvas(2.2)
    for x, words, color in _BOXES:
        _box(axes, x, 0.0, words, color)
    for x, words in enumerate(_ARROWS):
        axes.annotate("", (x + 0.68, 0.0), (x + 0.32, 0.0), arrowprops={"arrowstyle": "->", "color": INK})
        axes.text(x + 0.5, 0.62, words, ha="center", va="center", fontsize=8, color=ORANGE if x in (1, 2) else INK)
    _box(axes, 4.0, -1.35, "q_y\nint8", GREEN)
    axes.annotate("", (3.68, -1.35), (3.0, -0.42), arrowprops={"arrowstyle": "->", "color": INK})
    axes.text(2.95, -1.2, "requantize: * M / 2^n, + z_y", ha="right", va="center", fontsize=8)
    axes.text(4.0, -1.95, "for a next integer layer", ha="center", va="center", fontsize=8, color=GREEN)
    axes.set(xlim=(-0.45, 4.6), ylim=(-2.15, 0.95))
    axes.axis("off")
    return figure


def _box(axes: object, x: float, y: float, words: str, color: str) -> None:
    box = FancyBboxPatch(
        (x - 0.27, y - 0.37), 0.54, 0.74, boxstyle="round,pad=0.03", facecolor="white", edgecolor=color
    )
    axes.add_patch(box)  # type: ignore[attr-defined]
    axes.text(x, y, words, ha="center", va="center")  # type: ignore[attr-defined]
