"""A lesson on post-training quantization: a real layer, calibrated on some data and measured on other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lesson import Lesson, Table
from lesson_layers import LAYER
from lesson_ranges import sqnr
from llmq.integer import Linear
from llmq.observers import OBSERVERS, observer_class
from llmq.spec import QuantScheme, QuantSpec

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = ["WEIGHT", "quantized_layer", "schemes", "workflow_lesson"]

WEIGHT: Final = f"model.layers.{LAYER}.mlp.down_proj.weight"


def schemes() -> dict[str, QuantScheme]:
    """Ways to quantize a layer, by what they are called in the table: all observers, and ranges at run time."""
    static = QuantScheme()
    assert static.input is not None
    found = {f"static, {name}": replace(static, input=replace(static.input, observer=name)) for name in OBSERVERS}
    dynamic = replace(static.input, dynamic=True)
    token = replace(dynamic, strategy="token")
    four = QuantSpec(bits=4, range="narrow", signed_scale=False, scale_dtype="float32", strategy="channel")
    found["dynamic, by call"] = replace(static, input=dynamic)
    found["dynamic, by token"] = replace(static, input=token)
    found["none: floats"] = replace(static, input=None)
    found["dynamic, by token; 4-bit weights, a scale a row"] = QuantScheme(four, token)
    found["dynamic, by token; 4-bit weights, groups of 64"] = QuantScheme(
        replace(four, strategy="group", group_size=64), token
    )
    return found


def quantized_layer(weight: np.ndarray, scheme: QuantScheme, calibration: np.ndarray) -> Linear:
    """Calibrate where the scheme asks for it, and quantize.

    Parameters
    ----------
    weight : float32 (out_features, in_features)
    scheme : QuantScheme
    calibration : float32 (tokens, in_features)
        Shown to the observer in pieces, as batches would come.
    """
    if scheme.input is None or scheme.input.dynamic:
        return Linear.quantize(weight, scheme=scheme)
    observer = observer_class(scheme.input)(scheme.input)
    for batch in np.array_split(calibration, 8):
        observer.observe(batch)
    low, high = observer.range()
    return Linear.quantize(weight, scheme=scheme, input_range=(float(low), float(high)))


def workflow_lesson(sample: Sample) -> Lesson:
    """What comes out of a layer, in every way to find ranges."""
    calibration, unseen = sample.activations(LAYER)
    weight = sample.weights[WEIGHT]
    exact = unseen.astype(np.float64) @ weight.T.astype(np.float64)
    rows = []
    for name, scheme in schemes().items():
        layer = quantized_layer(weight, scheme, calibration)
        grid = layer.grids.input
        static = grid is not None and grid.scale is not None
        step = f"{float(grid.scale):.4f}" if static and grid is not None and grid.scale is not None else "-"
        rows.append((name, step, f"{sqnr(exact, np.asarray(layer(unseen))):.1f}"))
    return Lesson(
        "Post-training quantization of a layer",
        "Calibrate on data that the model has not seen, quantize, and measure on other data that it has not seen "
        "either. A projection of the sample model: 8-bit weights with a scale for each row, unless said otherwise, and "
        "8-bit inputs. SQNR of what comes out, in decibels:",
        {"workflow": Table(("range of the inputs", "step", "dB"), rows)},
        "Ranges for each token win by far. Without rounding the inputs, what is left is the error of the weights; with "
        "weights of 4 bits it is most of the error.",
    )
