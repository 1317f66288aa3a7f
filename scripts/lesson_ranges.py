"""Lessons on ranges: scale and zero point by hand, symmetric and asymmetric, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lesson import Lesson, Table, number

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = [
    "TEN",
    "asymmetric_grid",
    "by_hand",
    "distributions",
    "sqnr",
    "symmetric_grid",
    "symmetric_lesson",
    "ten_lesson",
]

TEN: Final = np.array([-1.05, -0.62, -0.24, 0.0, 0.41, 0.93, 1.56, 2.28, 3.1, 4.2], np.float32)
"""Ten numbers with a longer positive tail."""


def asymmetric_grid(x: np.ndarray, bits: int) -> tuple[float, int]:
    """Scale and zero point of a grid from the least to the largest number, zero included.

    >>> asymmetric_grid(np.array([-1.05, 4.2]), 4)
    (0.35, 3)
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, round(-low / scale)


def symmetric_grid(x: np.ndarray, bits: int) -> tuple[float, int]:
    """Scale and zero point of a grid from ``-max|x|`` to ``max|x|``, zero in the middle.

    >>> scale, zero_point = symmetric_grid(np.array([-1.05, 4.2]), 4)
    >>> round(scale, 6), zero_point
    (0.6, 8)
    """
    half = 2 ** (bits - 1)
    return float(np.abs(x).max()) / (half - 1), half


def by_hand(x: np.ndarray, scale: float, zero_point: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of numbers, and what the codes stand for: ``scale * (code - zero_point)``.

    >>> codes, back = by_hand(np.array([-1.05, 0.0, 0.41, 4.2]), 0.35, 3, 4)
    >>> codes.tolist(), back.round(6).tolist()
    ([0, 3, 4, 15], [-1.05, 0.0, 0.35, 4.2])
    """
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 2**bits - 1).astype(np.int64)
    return codes, scale * (codes - zero_point)


def sqnr(x: np.ndarray, back: np.ndarray) -> float:
    """Signal to quantization noise in decibels: ``10 log10(sum x^2 / sum (x - back)^2)``.

    >>> sqnr(np.array([10.0]), np.array([9.0]))
    20.0
    """
    x = np.asarray(x, np.float64)
    return float(10.0 * np.log10(np.sum(x * x) / np.sum((x - back) ** 2)))


def ten_lesson(_sample: Sample) -> Lesson:
    """Ten numbers, 4 bits, both kinds of ranges."""
    tables, lines = {}, []
    for name, grid in (("asymmetric", asymmetric_grid), ("symmetric", symmetric_grid)):
        scale, zero_point = grid(TEN, 4)
        codes, back = by_hand(TEN, scale, zero_point, 4)
        rows = []
        for x, code, value in zip(TEN.tolist(), codes, back, strict=True):
            steps = code - zero_point
            rows.append((f"{x:.2f}", f"{x / scale:.2f}", str(steps), str(code), f"{value:.2f}", f"{value - x:+.2f}"))
        headings = ("x", "x / s", "rounded", f"code (+ {zero_point})", "back", "error")
        tables[f"ten-{name}"] = Table(headings, rows, left=0)
        lines.append(f"{name} {np.abs(back - TEN).mean():.3f}")
    low, high = TEN.min(), TEN.max()
    asymmetric, symmetric = asymmetric_grid(TEN, 4), symmetric_grid(TEN, 4)
    return Lesson(
        "Scale and zero point, by hand on ten numbers",
        f"""
        Asymmetric, 4 bits: the range is [a, b] = [{low:.2f}, {high:.2f}], cut into 2^4 - 1 = 15 steps.

            s = (b - a) / 15 = ({high:.2f} + {-low:.2f}) / 15 = {asymmetric[0]:.2f}
            z = round(-a / s) = round({-low:.2f} / {asymmetric[0]:.2f}) = {asymmetric[1]}

        Symmetric, 4 bits: the range is [-m, m] with m = max|x| = {high:.2f}, cut into 14 steps.

            s = m / (2^3 - 1) = {high:.2f} / 7 = {symmetric[0]:.2f}
            z = 2^3 = {symmetric[1]}, always

        Then code = round(x / s) + z, and the code stands for s * (code - z). First asymmetric, then symmetric:
        """,
        tables,
        f"Mean errors: {', '.join(lines)}. The symmetric grid spends half of its codes on negative numbers, of which "
        "there are few. No error is larger than half a step, and zero is exact in both.",
    )


def distributions() -> dict[str, np.ndarray]:
    """Numbers of several kinds by what they are like, float32 (10000,) each, the same at every call."""
    normal = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    return {
        "weights: a bell around zero": normal,
        "outputs of ReLU: no negative ones": np.maximum(normal, 0.0),
        "shifted: a bell around 3": normal + 3.0,
    }


def symmetric_lesson(_sample: Sample) -> Lesson:
    """When a zero point is worth it."""
    rows = []
    for name, x in distributions().items():
        errors = []
        for grid in (symmetric_grid, asymmetric_grid):
            scale, zero_point = grid(x, 8)
            errors += [number(scale), f"{sqnr(x, by_hand(x, scale, zero_point, 8)[1]):.1f}"]
        rows.append((name, *errors))
    return Lesson(
        "Symmetric against asymmetric ranges",
        "10,000 numbers of three kinds with 8 bits. SQNR is the size of the numbers over that of the errors, in "
        "decibels: 6 dB more are half the error.",
        {"symmetric": Table(("numbers", "sym. step", "sym. dB", "asym. step", "asym. dB"), rows)},
        "A bell around zero needs no zero point. Where all numbers have one sign, an asymmetric range gets twice as "
        "many codes to where they are: about 6 dB. So weights are usually symmetric, and activations asymmetric.",
    )
