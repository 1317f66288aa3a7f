"""Each kind of layer of an integer network as nodes of a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq import integer
from llmq.errors import UnsupportedError
from llmq.integer.convolution import convolution_of, flat_geometry
from llmq.onnx.integer_activations import codes_of, floats_of
from llmq.onnx.integer_graph import Graph, Value
from llmq.onnx.integer_products import Product, between_floats, conv_attributes
from llmq.onnx.integer_sums import on_integers
from llmq.onnx.integer_weights import WeightCodes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_layer", "scope_of"]


def scope_of(path: str, layer: Any) -> str:
    """Under which name the nodes of a layer stand: its place in the network and its kind."""
    return f"{path}.{type(layer).__name__}" if path else type(layer).__name__


def add_layer(graph: Graph, layer: Any, x: Value, path: str = "") -> Value:
    """Add the nodes of a layer, and of those within.

    Parameters
    ----------
    graph : Graph
    layer : Layer
    x : Value
        What comes in.
    path : str
        Place in the network: numbers of layers, and `body` or `shortcut` in blocks.

    Raises
    ------
    UnsupportedError
        A layer of another kind than those of `llmq.integer`, or integers where it takes floats.
    """
    scope = scope_of(path, layer)
    if isinstance(layer, integer.Sequential):
        for i, inner in enumerate(layer.layers):
            x = add_layer(graph, inner, x, f"{path}.{i}" if path else str(i))
        return x
    if isinstance(layer, integer.Residual):
        return _residual(graph, layer, x, path)
    add = _KINDS.get(type(layer))
    if add is None:
        raise UnsupportedError("a layer of this kind has no ONNX form", tensor=scope, expected=_expected())
    return add(graph, layer, x, scope)


def _expected() -> str:
    return ", ".join(sorted(kind.__name__ for kind in (*_KINDS, integer.Sequential, integer.Residual)))


def _residual(graph: Graph, layer: integer.Residual, x: Value, path: str) -> Value:
    inner = f"{path}." if path else ""
    body = add_layer(graph, layer.body, x, f"{inner}body")
    other = x if layer.shortcut is None else add_layer(graph, layer.shortcut, x, f"{inner}shortcut")
    scope = scope_of(f"{inner}add", layer.add)
    total = graph.node("Add", [floats_of(graph, body, scope), floats_of(graph, other, scope)], scope)
    return Value(total, body.rank, layer.add.output)


def _product(graph: Graph, layer: Any, x: Value, scope: str) -> Value:
    product = Product.of(graph, layer, scope)
    if product.grids.input is None:
        _expect_floats(x, scope)
    add = between_floats if graph.style == "qdq" else on_integers
    if product.attributes is not None or x.rank == 2:
        return add(product, x)
    # Rows of all axes but the last, which are the tokens.
    rows = graph.constant(f"{scope}/rows", np.array([-1, product.weight.columns]))
    flat = _moved(graph, x, scope, lambda name: graph.node("Reshape", [name, rows], scope), 2)
    before = graph.node("Shape", [x.name], scope, end=-1)
    features = graph.constant(f"{scope}/features", np.array([product.weight.rows]))
    shape = graph.node("Concat", [before, features], scope, axis=0)
    y = add(product, flat)
    return _moved(graph, y, scope, lambda name: graph.node("Reshape", [name, shape], scope), x.rank)


def _expect_floats(x: Value, scope: str) -> None:
    if x.grid is not None:
        raise UnsupportedError("integers come in, but the layer multiplies floats", tensor=scope)


def _embedding(graph: Graph, layer: integer.Embedding, x: Value, scope: str) -> Value:
    """Look up codes, scales and zero points, then dequantize those rows alone."""
    codes = WeightCodes.of(layer.weight, graph, signed=layer.weight.spec.symmetric)
    table = codes.eight_bits(graph, scope)
    inputs = [
        graph.node("Gather", [table, x.name], scope),
        graph.node("Gather", [graph.constant(f"{scope}/weight_scale", codes.scale), x.name], scope),
    ]
    if codes.zero_point.any():
        points = graph.constant(f"{scope}/weight_zero_point", codes.zero_point)
        inputs.append(graph.node("Gather", [points, x.name], scope))
    rows = graph.node("DequantizeLinear", inputs, scope, axis=-1, block_size=codes.group_size)
    return Value(rows, x.rank + 1)


def _float_linear(graph: Graph, layer: integer.FloatLinear, x: Value, scope: str) -> Value:
    _expect_floats(x, scope)
    weight = graph.constant(f"{scope}/weight", np.asarray(layer.weight.T, np.float32))
    y = graph.node("MatMul", [x.name, weight], scope)
    if layer.bias is not None:
        y = graph.node("Add", [y, graph.constant(f"{scope}/bias", np.asarray(layer.bias, np.float32))], scope)
    return Value(y, x.rank)


def _float_conv(graph: Graph, layer: Any, x: Value, scope: str) -> Value:
    _expect_floats(x, scope)
    one = isinstance(layer, integer.FloatConv1d)
    weight = layer.weight[:, :, None] if one else layer.weight
    place = convolution_of(weight.shape, flat_geometry(layer.geometry) if one else layer.geometry)
    sizes = {name: getattr(place, name)[int(one) :] for name in ("kernel", "stride", "padding", "dilation")}
    inputs = [x.name, graph.constant(f"{scope}/weight", np.asarray(layer.weight, np.float32))]
    if layer.bias is not None:
        inputs.append(graph.constant(f"{scope}/bias", np.asarray(layer.bias, np.float32)))
    return Value(graph.node("Conv", inputs, scope, **conv_attributes(place.groups, **sizes)), x.rank)


def _relu(graph: Graph, _layer: integer.ReLU, x: Value, scope: str) -> Value:
    if not x.rounded:
        # Rounding afterwards gives the same codes, and runtimes fuse the ReLU with what comes before.
        return replace(x, name=graph.node("Relu", [x.name], scope))
    if graph.style == "qdq":
        return Value(graph.node("Relu", [floats_of(graph, x, scope)], scope), x.rank, x.grid)
    codes = codes_of(graph, x, scope)
    return replace(x, name=graph.node("Clip", [codes.name, codes.zero_point], scope))


def _moved(graph: Graph, x: Value, scope: str, move: Callable[[str], str], rank: int) -> Value:
    """Apply what picks or moves values, and changes none: to codes, or in the form that runtimes know of QDQ."""
    if x.grid is None:
        return Value(move(x.name), rank)
    codes = codes_of(graph, x, scope)
    if graph.style == "qoperator":
        return Value(move(codes.name), rank, x.grid, rounded=True)
    return Value(move(codes.dequantize(graph, scope)), rank, x.grid)


def _flatten(graph: Graph, layer: integer.Flatten, x: Value, scope: str) -> Value:
    start = range(x.rank)[: layer.start_dim]
    if len(start) == 1:
        return _moved(graph, x, scope, lambda name: graph.node("Flatten", [name], scope, axis=1), 2)
    shape = graph.constant(f"{scope}/shape", np.array([0] * len(start) + [-1]))
    return _moved(graph, x, scope, lambda name: graph.node("Reshape", [name, shape], scope), len(start) + 1)


def _max_pool(graph: Graph, layer: integer.MaxPool2d, x: Value, scope: str) -> Value:
    attributes = _pool_attributes(layer)
    return _moved(graph, x, scope, lambda name: graph.node("MaxPool", [name], scope, **attributes), x.rank)


def _avg_pool(graph: Graph, layer: integer.AvgPool2d, x: Value, scope: str) -> Value:
    attributes = {**_pool_attributes(layer), "count_include_pad": 1}
    return _averaged(graph, x, scope, lambda name: graph.node("AveragePool", [name], scope, **attributes))


def _adaptive_avg_pool(graph: Graph, _layer: integer.AdaptiveAvgPool2d, x: Value, scope: str) -> Value:
    return _averaged(graph, x, scope, lambda name: graph.node("GlobalAveragePool", [name], scope))


def _averaged(graph: Graph, x: Value, scope: str, average: Callable[[str], str]) -> Value:
    """Average floats; of codes, whole numbers that float32 adds up exactly, and round halves to even.

    Between `DequantizeLinear` and `QuantizeLinear` runtimes would round halves otherwise.
    """
    if x.grid is None:
        return Value(average(x.name), x.rank)
    codes = codes_of(graph, x, scope)
    point = graph.cast(codes.zero_point, np.float32, scope)
    centred = graph.node("Sub", [graph.cast(codes.name, np.float32, scope), point], scope)
    rounded = graph.node("Round", [average(centred)], scope)
    found = graph.cast(graph.node("Add", [rounded, point], scope), graph.code_dtype, scope)
    return Value(found, x.rank, x.grid, rounded=True)


def _pool_attributes(layer: integer.MaxPool2d | integer.AvgPool2d) -> dict[str, Any]:
    kernel, stride, padding = layer.sizes
    return {"kernel_shape": kernel, "strides": stride, "pads": (*padding, *padding)}


_KINDS: Final[dict[type, Callable[[Graph, Any, Value, str], Value]]] = {
    integer.Linear: _product,
    integer.Conv1d: _product,
    integer.Conv2d: _product,
    integer.Embedding: _embedding,
    integer.FloatLinear: _float_linear,
    integer.FloatConv1d: _float_conv,
    integer.FloatConv2d: _float_conv,
    integer.ReLU: _relu,
    integer.Flatten: _flatten,
    integer.MaxPool2d: _max_pool,
    integer.AvgPool2d: _avg_pool,
    integer.AdaptiveAvgPool2d: _adaptive_avg_pool,
}
"""What adds each kind of layer that holds no others."""
