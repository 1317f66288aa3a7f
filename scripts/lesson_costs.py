"""Lessons on what bits cost: sizes, errors, and what rounded activations do to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lesson import Lesson, Table, number
from lesson_layers import error

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = ["gigabytes", "sizes_lesson", "widths_lesson"]

WIDTHS: Final = (8, 7, 6, 5, 4, 3, 2, 1)
PARAMETERS: Final = 70_000_000_000


def widths_lesson(sample: Sample) -> Lesson:
    """Every width on real weights."""
    weights = list(sample.weights.values())
    count = sum(weight.size for weight in weights)
    rows = []
    for bits in WIDTHS:
        nearest, _ = error(weights, bits, 64, "rtn")
        searched, stored = error(weights, bits, 64, "mse")
        share = 100.0 * 10.0 ** (-searched / 20.0)
        size = f"{count * stored / 8e6:.2f} MB"
        rows.append(
            (
                str(bits),
                size,
                f"{stored:.2f}",
                f"{32.0 / stored:.1f}x",
                f"{nearest:.1f}",
                f"{searched:.1f}",
                f"{share:.2g} %",
            )
        )
    headings = ("bits", "size", "bits/weight", "vs float32", "nearest dB", "search dB", "error")
    return Lesson(
        "What 8 to 1 bits cost",
        f"The {count:,} weights of the sample model's linears ({4 * count / 1e6:.1f} MB in float32), in groups of 64 "
        "with 16-bit scales. `nearest` takes the scale from the extremes, `search` the clipping of least squared "
        "error. The error is the root mean square of the errors over that of the weights, with the search:",
        {"widths": Table(headings, rows, left=0)},
        "A bit less doubles the steps, and so the errors: 6 dB. At 2 bits and 1 bit little more than the sign is left, "
        "and where the range is cut matters most. One bit is the sign grid: -s or +s.",
    )


def gigabytes(parameters: int, bits: float) -> float:
    """Size of so many parameters: ``parameters * bits / 8`` bytes, in 10^9 bytes.

    >>> gigabytes(70_000_000_000, 32)
    280.0
    """
    return parameters * bits / 8 / 1e9


def sizes_lesson(_sample: Sample) -> Lesson:
    """A model of 70 billion parameters."""
    rows = []
    for bits in (32, 16, 8, 4, 2):
        scaled = [bits + 16.0 / size for size in (128, 64, 32)] if bits <= 8 else []
        cells = [number(gigabytes(PARAMETERS, each)) for each in scaled] or ["-"] * 3
        rows.append((str(bits), number(gigabytes(PARAMETERS, bits)), *cells))
    headings = ("bits", "codes alone, GB", "groups of 128", "groups of 64", "groups of 32")
    return Lesson(
        "How big 70 billion parameters are",
        "Bytes are parameters * bits / 8. With a scale of 16 bits for each group, a weight costs bits + 16 / group "
        "size:",
        {"sizes": Table(headings, rows, left=0)},
        "32 bits are 280 GB, not 28. A real checkpoint is a little larger at few bits, because embeddings, norms and "
        "mostly the head keep more bits than the rest.",
    )
