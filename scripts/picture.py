"""How pictures of the pages look, and how they become files: small SVG, the same bytes at every run."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["BLUE", "GREEN", "GREY", "INK", "ORANGE", "PALE", "RED", "canvas", "style", "svg"]

BLUE: Final = "#0072b2"
ORANGE: Final = "#b36b00"
GREEN: Final = "#009e73"
RED: Final = "#d55e00"
GREY: Final = "#8a8a8a"
PALE: Final = "#e8e8e8"
INK: Final = "#222222"

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    # Text stays text: small files, and words that can be found.
    "svg.fonttype": "none",
    "svg.hashsalt": "llmq",
    "path.simplify": True,
}


def style() -> AbstractContextManager[None]:
    """Within it figures are drawn and written in the style of the pages."""
    return mpl.rc_context(_STYLE)


def canvas(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    """A white figure, 7 inches wide, and its axes row by row.

    White also where the page is dark: words and lines stay readable.
    """
    figure = Figure(figsize=(7.0, height), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def svg(figure: Figure) -> str:
    """The file of a figure, without a date or a version."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(_lines(stream.getvalue())) + "\n"


_FONTS: Final = "'DejaVu Sans', Verdana, sans-serif"
"""What a reader without the font that pictures are laid out with shall take."""


def _lines(text: str) -> Iterator[str]:
    """Lines with other fonts to fall back on, short coordinates, and nothing that says nothing."""
    for line in text.splitlines():
        short = re.sub(r"(\d\.\d{2})\d+", r"\1", line.rstrip())
        short = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", short)
        yield short.replace("'DejaVu Sans';", f"{_FONTS};")
