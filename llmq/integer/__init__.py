"""Layers that compute in integers: weights, inputs and biases are codes, and floats come out again.

layer = Linear.quantize(weight, bias, QuantScheme(), input_range=(-3.0, 5.0))
y = layer(x)
"""

from __future__ import annotations

from llmq.integer.activations import ActivationGrid, Quantized
from llmq.integer.calibrate import calibrate
from llmq.integer.convolution import Conv1d, Conv2d
from llmq.integer.embedding import Embedding
from llmq.integer.files import load, save
from llmq.integer.floats import FloatConv1d, FloatConv2d, FloatLinear
from llmq.integer.linear import Linear
from llmq.integer.product import Grids
from llmq.integer.residual import Add
from llmq.integer.sequential import Layer, Residual, Sequential
from llmq.integer.shapes import AdaptiveAvgPool2d, AvgPool2d, Flatten, MaxPool2d, ReLU
from llmq.integer.weights import LayerWeight

__all__ = [
    "ActivationGrid",
    "AdaptiveAvgPool2d",
    "Add",
    "AvgPool2d",
    "Conv1d",
    "Conv2d",
    "Embedding",
    "Flatten",
    "FloatConv1d",
    "FloatConv2d",
    "FloatLinear",
    "Grids",
    "Layer",
    "LayerWeight",
    "Linear",
    "MaxPool2d",
    "Quantized",
    "ReLU",
    "Residual",
    "Sequential",
    "calibrate",
    "load",
    "save",
]
