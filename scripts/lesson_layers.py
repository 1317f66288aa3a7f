"""Lessons on layers: filters and groups, dynamic and static ranges, integer arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

import llmq
from lesson import Lesson, Table, number
from lesson_ranges import asymmetric_grid, by_hand, sqnr, symmetric_grid

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = ["SMALL_LAYER", "channels_lesson", "dynamic_lesson", "error", "integer_lesson", "static_and_dynamic"]

LAYER: Final = 5
"""The block whose activations are looked at: the last, which has the largest ones."""


SMALL_LAYER: Final = (
    np.array([0.9, -0.35, 1.5, 0.6]),
    np.array([[0.52, -1.0, 0.25, 0.75], [1.27, 0.1, -0.6, 0.3], [-0.22, 0.4, 0.1, -0.05]]),
    np.array([0.1, -0.25, 0.05]),
)
"""Inputs, weights and biases of a layer to work by hand; nothing in it lies halfway between two codes."""


def error(weights: list[np.ndarray], bits: int, group_size: int, method: str = "rtn") -> tuple[float, float]:
    """SQNR in decibels and bits per weight of some weights, quantized by `llmq.quantize_tensor`.

    Parameters
    ----------
    weights : list of float32 (out_features, in_features)
    bits, group_size, method
        As `quantize_tensor` takes them; scales are float16.
    """
    signal = noise = stored = 0.0
    for weight in weights:
        q = llmq.quantize_tensor(weight, bits, group_size, method=method, scale_dtype="float16")
        wide = weight.astype(np.float64)
        signal += float(np.sum(wide**2))
        noise += float(np.sum((wide - q.dequantize()) ** 2))
        stored += 8.0 * q.nbytes
    return 10.0 * float(np.log10(signal / noise)), stored / sum(weight.size for weight in weights)


def channels_lesson(sample: Sample) -> Lesson:
    """How many weights share a scale."""
    weights = list(sample.weights.values())
    flat = [weight.reshape(1, -1) for weight in weights]
    kinds = [("tensor", flat, -1), ("row: a filter, a channel", weights, -1)]
    kinds += [(f"group of {size} in a row", weights, size) for size in (128, 64, 32)]
    rows = []
    for name, chosen, size in kinds:
        found = [error(chosen, bits, size) for bits in (8, 4, 2)]
        rows.append((name, *(f"{decibels:.1f}" for decibels, _ in found), f"{found[1][1]:.3f}"))
    count = sum(weight.size for weight in weights)
    return Lesson(
        "Per tensor, per channel, per group",
        f"The {count:,} weights of the sample model's linears. One scale can be shared by a whole weight, by each of "
        "its rows (all that one output is computed from: in a convolution, a filter), or by a piece of a row. SQNR in "
        "decibels at 8, 4 and 2 bits, and bits per weight at 4 bits with the scales, 16 bits each:",
        {"channels": Table(("one scale for a", "8 bits", "4 bits", "2 bits", "bits/weight"), rows)},
        "A scale has to fit the largest number it serves, so that the fewer it serves, the finer it can be. Scales of "
        "rows cost almost nothing; those of groups cost 16 / group size bits for each weight.",
    )


def static_and_dynamic(calibration: np.ndarray, x: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """What becomes of activations, float32 (tokens, columns), by how their ranges are found."""
    whole = symmetric_grid(calibration, bits)
    columns = x.shape[1]

    def each(size: int) -> np.ndarray:
        parts = x.reshape(-1, size)
        scale = np.maximum(np.abs(parts).max(axis=1, keepdims=True), np.float32(1e-30)) / (2 ** (bits - 1) - 1)
        back: np.ndarray = scale * np.rint(parts / scale)
        return back.reshape(x.shape)

    return {
        "static, one range": by_hand(x, *whole, bits)[1],
        "dynamic, a range each call": by_hand(x, *symmetric_grid(x, bits), bits)[1],
        "dynamic, a range each token": each(columns),
        "dynamic, 64 numbers of a token": each(64),
    }


def dynamic_lesson(sample: Sample) -> Lesson:
    """Where ranges of activations come from."""
    calibration, unseen = sample.activations(LAYER)
    found = {bits: static_and_dynamic(calibration, unseen, bits) for bits in (8, 4)}
    rows = [(name, *(f"{sqnr(unseen, found[bits][name]):.1f}" for bits in (8, 4))) for name in found[8]]
    largest = np.abs(unseen).max(axis=1)
    return Lesson(
        "Dynamic against static activations",
        "Weights are known beforehand; activations are not. A static range is found once, by observers that watch "
        "data which the model has not seen in training (calibration), and then stays. A dynamic one is found anew "
        "whenever the layer runs. Inputs of a projection of the sample model: 1,024 tokens to calibrate with, and "
        "SQNR in decibels on the next 1,024:",
        {"dynamic": Table(("range", "8 bits", "4 bits"), rows)},
        f"The largest number of a token is {number(float(np.median(largest)))} in the middle and "
        f"{number(float(largest.max()))} at most: one range for all wastes most codes on most tokens. Numbers beyond "
        f"the static range: {np.mean(np.abs(unseen) > np.abs(calibration).max()):.1%}. llmq's language models use the "
        "last row; a static range costs no search when the layer runs, and suits chips with nothing but integers.",
    )


def integer_lesson(_sample: Sample) -> Lesson:
    """A linear layer in integers, with its bias, and back to 8 bits."""
    x, weight, bias = SMALL_LAYER
    s_x, z_x = asymmetric_grid(x, 8)
    q_x = by_hand(x, s_x, z_x, 8)[0] - z_x
    exact = weight @ x + bias
    s_y, z_y = asymmetric_grid(exact, 8)
    rows, requantized = [], []
    for row, b, y in zip(weight, bias, exact, strict=True):
        s_w, z_w = symmetric_grid(row, 8)
        q_w = by_hand(row, s_w, z_w, 8)[0] - z_w
        q_b = round(b / (s_x * s_w))
        total = int(q_w @ q_x) + q_b
        rows.append((str(q_w.tolist()), str(q_b), f"{total:,}", f"{total * s_x * s_w:.4f}", f"{y:.4f}"))
        mantissa, shift = fixed_point(s_x * s_w / s_y)
        code = z_y + ((total * mantissa + (1 << (shift - 1))) >> shift)
        requantized.append(
            (f"{total:,}", f"{mantissa:,} / 2^{shift}", str(code), f"{s_y * (code - z_y):.4f}", f"{y:.4f}")
        )
    return Lesson(
        "Integer arithmetic: bias, and requantizing",
        f"""
        With x = s_x (q_x - z_x) and w = s_w q_w, a product is s_x s_w times a sum of integers:

            y = sum x w + b  =  s_x s_w * (sum (q_x - z_x) q_w + q_b)
            q_b = round(b / (s_x s_w))

        so the bias is an int32 at the scale of the sums, and a whole layer is integers until the last product. Here
        x = {x.tolist()} at s_x = {s_x:.6f}, z_x = {z_x}: q_x - z_x = {q_x.tolist()}. Each row of the weight has its
        own s_w:
        """,
        {
            "integer": Table(("q_w", "q_b", "int32 sum", "* s_x s_w", "float"), rows, left=1),
            "requantize": Table(
                ("int32 sum", "s_x s_w / s_y", "code", "s_y (code - z_y)", "float"), requantized, left=0
            ),
        },
        f"The second table stays in integers: a next layer wants int8 codes at s_y = {s_y:.6f}, z_y = {z_y}, and "
        "s_x s_w / s_y is known beforehand. It becomes a 31-bit integer over a power of two, so that requantizing is a "
        "product, a shift with rounding, and z_y.",
    )


def fixed_point(factor: float) -> tuple[int, int]:
    """A positive factor below 1 as `mantissa / 2**shift` with a mantissa of 31 bits.

    >>> fixed_point(0.375)
    (1610612736, 32)
    """
    fraction, exponent = np.frexp(factor)
    return round(float(fraction) * 2**31), 31 - int(exponent)
