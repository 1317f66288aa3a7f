"""Layers that multiply by a weight, as operators on integers: sums in int32, then scales."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmq.onnx.integer_activations import clipped, static_parameters
from llmq.onnx.integer_graph import Value
from llmq.onnx.integer_products import between_floats

if TYPE_CHECKING:
    from llmq.onnx.integer_activations import Codes
    from llmq.onnx.integer_products import Product
    from llmq.onnx.integer_weights import WeightCodes

__all__ = ["on_integers"]


def on_integers(product: Product, x: Value) -> Value:
    """Run a layer on codes; inputs that stay floats are multiplied by the values of the weight."""
    grid = product.grids.input
    if grid is None:
        return between_floats(product, x)
    padded = _padded(product, x)
    codes, weight = product.inputs(padded, grid), product.codes()
    if product.grouped:
        return product.result(_sum_of_groups(product, codes, weight), x)
    if product.attributes is None:
        if product.grids.output is not None and product.bias is None:
            return _requantized(product, codes, weight)
        return product.result(_scaled(product, _matmul_sums(product, codes, weight), codes), x)
    if product.grids.output is not None:
        return _requantized(product, codes, weight)
    return product.result(_scaled(product, _conv_sums(product, codes, weight), codes), x)


def _scaled(product: Product, sums: str, codes: Codes) -> str:
    """Sums times ``s_x s_w``, and the bias, float32."""
    floats, w_scale = product.graph.cast(sums, np.float32, product.scope), product.weight.scale[:, 0]
    s_x = codes.grid.scale
    if s_x is None:
        given = codes.broadcast_scale(product.graph, product.scope)
        factor = product.node("Mul", given, product.constant("weight_scale", product.along(w_scale)))
        result = product.node("Mul", floats, factor)
        return result if product.bias is None else product.node("Add", result, product.bias_at_run_time(given))
    step = np.float32(s_x) * w_scale
    result = product.node("Mul", floats, product.constant("factor", product.along(step)))
    if product.bias is None:
        return result
    whole, rest = product.layer.static_bias
    value = whole[0] * (np.float64(s_x) * w_scale) + (0.0 if product.grids.output is not None else rest[0])
    return product.node("Add", result, product.constant("bias", product.along(value.astype(np.float32))))


def _matmul_sums(product: Product, codes: Codes, weight: WeightCodes) -> str:
    """Sums int32 (n, rows)."""
    stored = weight.eight_bits(product.graph, product.scope, weight.codes.T)
    point = weight.zero_point[0, 0] if weight.one_zero_point else weight.zero_point[:, 0]
    points = product.constant("weight_zero_point", point)
    if not codes.by_token:
        return product.node("MatMulInteger", codes.name, stored, codes.zero_point, points)
    sums = product.node("MatMulInteger", codes.name, stored, "", points)
    return _without_points(product, sums, codes, weight)


def _without_points(product: Product, sums: str, codes: Codes, weight: WeightCodes) -> str:
    """Subtract from sums what zero points of tokens add to them: runtimes take one for all inputs only."""
    totals = product.along(weight.integers.sum(axis=1, dtype=np.int32))
    points = codes.broadcast_point(product.graph, product.scope)
    return product.node("Sub", sums, product.node("Mul", points, product.constant("weight_total", totals)))


def _padded(product: Product, x: Value) -> Value:
    """Images with zeros around, where each has a zero point of its own, with which no operator on integers can pad."""
    grid = product.grids.input
    assert grid is not None
    if product.attributes is None or grid.spec.strategy != "token":
        return x
    pads, size = product.attributes["pads"], len(product.kernel)
    if not any(pads):
        return x
    around = product.constant("pads", np.array([0, 0, *pads[:size], 0, 0, *pads[size:]]))
    return replace(x, name=product.node("Pad", x.name, around))


def _conv_sums(product: Product, codes: Codes, weight: WeightCodes) -> str:
    """Sums int32 (n, rows, ...)."""
    attributes = dict(product.attributes or {})
    if codes.by_token:
        attributes["pads"] = (0,) * len(attributes["pads"])

    def convolve(filters: str, point: Any) -> str:
        inputs = [codes.name, filters, "" if codes.by_token else codes.zero_point]
        return product.node("ConvInteger", *inputs, product.constant("weight_zero_point", point), **attributes)

    single = weight.with_one_zero_point()
    if single is not None:
        sums = convolve(single.eight_bits(product.graph, product.scope), single.zero_point[0, 0])
    else:
        # Runtimes take one zero point for all filters: what the others add is a multiple of the sum of inputs.
        none = np.zeros((), weight.codes.dtype)
        rows = 1 if attributes["group"] == 1 else len(weight.codes)
        ones = product.constant("ones", np.ones((rows, *weight.shape[1:]), weight.codes.dtype))
        points = product.constant("zero_points", product.along(weight.zero_point[:, 0].astype(np.int32)))
        totals = product.node("Mul", convolve(ones, none), points)
        sums = product.node("Sub", convolve(weight.eight_bits(product.graph, product.scope), none), totals)
    return _without_points(product, sums, codes, weight) if codes.by_token else sums


def _requantized(product: Product, codes: Codes, weight: WeightCodes) -> Value:
    """Codes in, codes out, in one operator."""
    output, graph, scope = product.grids.output, product.graph, product.scope
    assert output is not None
    linear = product.attributes is None
    stored = weight.eight_bits(graph, scope, weight.codes.T if linear else None)
    inputs = [codes.name, codes.scale, codes.zero_point, stored]
    inputs.append(product.constant("weight_scale", weight.scale[:, 0]))
    inputs.append(product.constant("weight_zero_point", weight.zero_point[:, 0]))
    inputs += static_parameters(graph, output, scope)
    if product.bias is not None:
        inputs.append(product.constant("bias", product.layer.static_bias[0][0]))
    name = product.node("QLinearMatMul" if linear else "QLinearConv", *inputs, **product.attributes or {})
    return Value(clipped(graph, name, output.spec.bits, scope), codes.rank, output, rounded=True)


def _sum_of_groups(product: Product, codes: Codes, weight: WeightCodes) -> str:
    """Results float32 (n, rows) of a weight in groups of columns: a product a group, scaled, then their sum."""
    rows, groups = weight.scale.shape
    size = weight.group_size
    by_group = product.node("Reshape", codes.name, product.constant("groups", np.array([-1, groups, size])))
    by_group = product.node("Transpose", by_group, perm=[1, 0, 2])  # (groups, n, size)
    arranged = weight.codes.reshape(rows, groups, size).transpose(1, 2, 0)  # (groups, size, rows)
    stored = weight.eight_bits(product.graph, product.scope, arranged)
    point: Any = weight.zero_point[0, 0] if weight.one_zero_point else weight.zero_point.T[:, None]
    points = product.constant("weight_zero_point", point)
    if codes.by_token:
        sums = product.node("MatMulInteger", by_group, stored, "", points)
        totals = weight.integers.reshape(rows, groups, size).sum(axis=2, dtype=np.int32).T[:, None]
        x_points = codes.broadcast_point(product.graph, product.scope)
        sums = product.node("Sub", sums, product.node("Mul", x_points, product.constant("weight_total", totals)))
    else:
        sums = product.node("MatMulInteger", by_group, stored, codes.zero_point, points)
    floats = product.graph.cast(sums, np.float32, product.scope)
    scaled = product.node("Mul", floats, product.constant("weight_scale", weight.scale.T[:, None]))
    total = product.node("ReduceSum", scaled, product.constant("axes", np.array([0])), keepdims=0)
    result = product.node("Mul", total, codes.broadcast_scale(product.graph, product.scope))
    return result if product.bias is None else product.node("Add", result, product.constant("bias", product.bias))
