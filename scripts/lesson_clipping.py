"""A lesson on clipping: what to do about a few numbers that are much larger than the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lesson import Lesson, Table
from lesson_ranges import by_hand, sqnr
from llmq.observers import OBSERVERS
from llmq.spec import QuantSpec

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = ["BITS", "OUTLIERS", "RULES", "clipped", "clipping_lesson", "errors", "limits", "with_outliers"]

OUTLIERS: Final = 10
BITS: Final = 4


def with_outliers() -> np.ndarray:
    """10,000 numbers of a bell, float32, the last ten of them 8 to 12 times as large; the same at every call."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(10_000).astype(np.float32)
    x[-OUTLIERS:] = rng.choice([-1.0, 1.0], OUTLIERS) * rng.uniform(8.0, 12.0, OUTLIERS)
    return x


def clipped(x: np.ndarray, limit: float, bits: int = BITS) -> np.ndarray:
    """What comes back of numbers from a symmetric grid over ``[-limit, limit]``.

    >>> clipped(np.array([0.4, 1.0, 50.0]), 7.0, 4).tolist()
    [0.0, 1.0, 7.0]
    """
    half = 2 ** (bits - 1)
    scale = limit / (half - 1)
    return by_hand(np.clip(x, -limit, limit), scale, half, bits)[1]


def errors(x: np.ndarray, limit: float, bits: int = BITS) -> tuple[float, float]:
    """Mean squared error of rounding (of numbers inside the limit), and of clipping (of those outside).

    >>> errors(np.array([0.4, 1.0, 9.0, 7.0]), 7.0, 4)
    (0.04, 1.0)
    """
    squares = (np.asarray(x, np.float64) - clipped(x, limit, bits)) ** 2
    outside = np.abs(x) > limit
    return float(squares[~outside].sum()) / x.size, float(squares[outside].sum()) / x.size


RULES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "extremes": ("minmax", {}),
    "percentile 99.9": ("percentile", {"percentile": 99.9}),
    "percentile 99": ("percentile", {"percentile": 99.0}),
    "least squared error": ("mse", {}),
    "entropy": ("entropy", {}),
}
"""Names of observers, and their options."""


def limits(x: np.ndarray, bits: int = BITS) -> dict[str, float]:
    """Where to cut symmetric ranges, by several rules."""
    found = {}
    for label, (name, options) in RULES.items():
        observer = OBSERVERS[name](QuantSpec(bits=bits, range="narrow"), **options)
        observer.observe(x)
        found[label] = float(observer.range()[1])
    return found


def clipping_lesson(_sample: Sample) -> Lesson:
    """Rules for ranges, at two widths."""
    x = with_outliers()
    ordinary = x[:-OUTLIERS]
    tables = {}
    for bits in (BITS, 8):
        rows = []
        for name, limit in limits(x, bits).items():
            outside = int(np.count_nonzero(np.abs(x) > limit))
            whole, most = (sqnr(part, clipped(part, limit, bits)) for part in (x, ordinary))
            rows.append((name, f"+-{limit:.2f}", str(outside), f"{whole:.1f}", f"{most:.1f}"))
        headings = (f"range, at {bits} bits", "from .. to", "clipped", "dB, all", "dB, without outliers")
        tables[f"clipping-{bits}"] = Table(headings, rows)
    return Lesson(
        "Clipping: a range against its outliers",
        f"10,000 numbers of a bell, of which {OUTLIERS} are outliers 8 to 12 times as large as usual. A range up to "
        "the largest makes every step large; a shorter one cuts the outliers off. With 4 bits, then with 8:",
        tables,
        "At 4 bits rounding costs more than the outliers do, and cutting them off wins. At 8 bits it is the other way "
        "round: steps are small anyway. A percentile cuts the same share whatever it costs; least squared error weighs "
        "both. Which is better for a model depends on whether its outliers matter: measure it.",
    )
