"""Pictures of integers and floats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle

from lesson_numbers import FORMATS, fields
from picture import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesson_sample import Sample

__all__ = ["draw_complement", "draw_floats", "draw_spacing"]


def draw_complement(_sample: Sample) -> Figure:
    """The sixteen patterns of four bits on a circle, with both readings."""
    figure, (axes,) = canvas(4.3)
    for pattern in range(16):
        angle = np.pi / 2 - 2 * np.pi * pattern / 16
        x, y = np.cos(angle), np.sin(angle)
        signed = pattern - 16 if pattern >= 8 else pattern
        axes.text(x, y, f"{pattern:04b}", ha="center", va="center", family="monospace", fontsize=10)
        axes.text(
            0.72 * x,
            0.72 * y,
            f"{signed:+d}" if signed else "0",
            ha="center",
            va="center",
            color=RED if signed < 0 else BLUE,
        )
        axes.text(1.28 * x, 1.22 * y, str(pattern), ha="center", va="center", color=GREY)
    axes.annotate(
        "", (0.42, 0.16), (0.0, 0.46), arrowprops={"arrowstyle": "->", "color": INK, "connectionstyle": "arc3,rad=-0.3"}
    )
    axes.text(0.02, 0.2, "+1", ha="center", color=INK)
    axes.text(0.0, -0.4, "+7 and one more\nis -8", ha="center", va="center", fontsize=8, color=GREY)
    for x, color, words in (
        (1.75, GREY, "outside: read as\nunsigned"),
        (-1.75, BLUE, "inside: read in\ntwo's complement"),
    ):
        axes.text(x, 0.95, words, ha="center", va="center", color=color)
    axes.set(xlim=(-2.3, 2.3), ylim=(-1.4, 1.4), aspect="equal")
    axes.axis("off")
    return figure


def draw_floats(_sample: Sample) -> Figure:
    """The bits of -6.25 in three formats."""
    figure, (axes,) = canvas(2.3)
    for line, form in enumerate(FORMATS):
        y, x = -1.3 * line, 0.0
        axes.text(-0.6, y + 0.5, form.name, ha="right", va="center")
        for part, color in zip(fields(-6.25, form), (RED, ORANGE, BLUE), strict=True):
            for bit in part:
                axes.add_patch(
                    Rectangle((x, y), 1, 1, facecolor=color, alpha=0.75 if bit == "1" else 0.22, edgecolor="white")
                )
                axes.text(x + 0.5, y + 0.47, bit, ha="center", va="center", fontsize=8, family="monospace")
                x += 1
    for x, color, words in ((0.5, RED, "sign"), (5.0, ORANGE, "exponent"), (20.5, BLUE, "mantissa")):
        axes.text(x, 1.25, words, ha="center", color=color, weight="bold")
    axes.set(xlim=(-5.0, 32.2), ylim=(-2.8, 2.0))
    axes.axis("off")
    return figure


def draw_spacing(_sample: Sample) -> Figure:
    """How far apart neighbouring numbers are, by their size."""
    figure, (axes,) = canvas(3.4)
    for form, color in zip(FORMATS, (GREEN, ORANGE, BLUE), strict=True):
        exponents = np.arange(-20, 21)
        inside = (2.0**exponents <= form.largest) & (2.0**exponents >= form.smallest * 2.0**-form.mantissa)
        exponents = exponents[inside]
        steps = np.maximum(2.0 ** (exponents - form.mantissa), form.smallest * form.step)
        edges = np.append(2.0**exponents, min(2.0 ** (exponents[-1] + 1), form.largest))
        axes.stairs(steps, edges, baseline=None, color=color, linewidth=1.8)
        axes.text(*_label(form.name), form.name, color=color, weight="bold")
    step = 4.0 / 127
    axes.plot([step / 2, 4.0], [step, step], color=RED, linewidth=1.8)
    axes.text(0.05, step * 1.8, "int8 for -4 .. 4", color=RED, weight="bold", ha="left")
    axes.set(xscale="log", yscale="log", xlabel="size of the number", ylabel="step to the next one")
    axes.set(xlim=(1e-6, 2e6), ylim=(1e-13, 1e4))
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def _label(name: str) -> Any:
    return {"float32": (3e3, 2e-6), "float16": (2e-6, 2e-7), "bfloat16": (2e2, 8e1)}[name]
