"""Layers that multiply by a weight, as float operators between `QuantizeLinear` and `DequantizeLinear`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmq.integer import Conv1d, Linear
from llmq.onnx.integer_activations import codes_of, encode, expect, floats_of
from llmq.onnx.integer_graph import Graph, Value
from llmq.onnx.integer_weights import WeightCodes

if TYPE_CHECKING:
    from llmq.integer import ActivationGrid, Conv2d, LayerWeight
    from llmq.integer.product import Grids
    from llmq.onnx.integer_activations import Codes

__all__ = ["Product", "between_floats", "conv_attributes"]


@dataclass(frozen=True, eq=False)
class Product:
    """A `Linear`, `Conv1d` or `Conv2d` in a graph.

    Parameters
    ----------
    graph : Graph
    scope : str
        Under which its nodes and tensors stand.
    layer : Linear or Conv2d
        What computes; that of images of a Conv1d.
    attributes : dict or None
        Of `Conv`; None for a Linear.
    kernel : tuple of int
        Of filters.
    """

    graph: Graph
    scope: str
    layer: Linear | Conv2d
    attributes: dict[str, Any] | None = None
    kernel: tuple[int, ...] = ()

    @classmethod
    def of(cls, graph: Graph, layer: Linear | Conv1d | Conv2d, scope: str) -> Product:
        """Take a layer."""
        if isinstance(layer, Linear):
            return cls(graph, scope, layer)
        # A Conv1d convolves images of height 1.
        images, first = (layer.images, 1) if isinstance(layer, Conv1d) else (layer, 0)
        geometry = images.geometry
        sizes = {name: getattr(geometry, name)[first:] for name in ("kernel", "stride", "padding", "dilation")}
        return cls(graph, scope, images, conv_attributes(geometry.groups, **sizes), sizes["kernel"])

    @property
    def weight(self) -> LayerWeight:
        """The weight."""
        return self.layer.weight

    @property
    def bias(self) -> np.ndarray | None:
        """The bias, float32 (rows,)."""
        return self.layer.bias

    @property
    def grids(self) -> Grids:
        """How activations become integers."""
        return self.layer.grids

    @property
    def grouped(self) -> bool:
        """Whether rows have a scale for each group of columns."""
        return len(self.weight.parts) > 1

    def codes(self) -> WeightCodes:
        """The weight as ONNX stores it."""
        found = WeightCodes.of(self.weight, self.graph)
        return replace(found, shape=(*found.shape[:2], *self.kernel))

    def along(self, values: np.ndarray) -> np.ndarray:
        """Let a value for each row broadcast against results."""
        return values if self.attributes is None else values.reshape(-1, *[1] * len(self.kernel))

    def constant(self, name: str, values: Any) -> str:
        """Add an initializer of this layer."""
        return self.graph.constant(f"{self.scope}/{name}", values)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of this layer."""
        return self.graph.node(operator, inputs, self.scope, **attributes)

    def inputs(self, x: Value, grid: ActivationGrid) -> Codes:
        """Round what comes in to codes, or take the codes that come in."""
        if x.grid is None:
            return encode(self.graph, x, grid, self.scope)
        expect(x, grid, self.scope)
        return codes_of(self.graph, x, self.scope)

    def result(self, name: str, x: Value) -> Value:
        """What comes out, float32 or yet to be rounded."""
        return Value(name, x.rank, self.grids.output)

    def bias_at_run_time(self, scale: str) -> str:
        """The bias as the layer rounds it to multiples of ``s_x s_w``: float32, of the scale's tokens and all rows."""
        # In float64 as there, and it never leaves floats: what exceeds 32 bits is kept.
        step = self.node(
            "Mul",
            self.graph.cast(scale, np.float64, self.scope),
            self.constant("weight_scale_exact", self.along(self.weight.scale[:, 0].astype(np.float64))),
        )
        assert self.bias is not None
        bias = self.constant("bias", self.along(self.bias.astype(np.float64)))
        whole = self.node("Round", self.node("Div", bias, step))
        return self.graph.cast(self.node("Mul", whole, step), np.float32, self.scope)


def conv_attributes(
    groups: int,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> dict[str, Any]:
    """Attributes of `Conv` and its kin."""
    return {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": (*padding, *padding),
        "dilations": dilation,
        "group": groups,
    }


def between_floats(product: Product, x: Value) -> Value:
    """Run a layer on floats that stand for integers; of inputs that stay floats, on these."""
    graph, grid = product.graph, product.grids.input
    if grid is None:
        result = _multiply(product, floats_of(graph, x, product.scope), product.bias)
        return product.result(result, x)
    codes = product.inputs(x, grid)
    given = codes.dequantize(graph, product.scope)
    if product.bias is None or product.grouped:
        return product.result(_multiply(product, given, product.bias), x)
    if grid.scale is None:
        result = _multiply(product, given, None)
        bias = product.bias_at_run_time(codes.broadcast_scale(graph, product.scope))
        return product.result(product.node("Add", result, bias), x)
    whole, rest = product.layer.static_bias
    result = _multiply(product, given, whole[0])
    if rest.any() and product.grids.output is None:
        result = product.node("Add", result, product.constant("bias_rest", product.along(rest[0])))
    return product.result(result, x)


def _multiply(product: Product, x: str, bias: np.ndarray | None) -> str:
    """Multiply floats by the values of the weight; an int32 bias counts steps of the sums."""
    inputs = [x, _dequantized_weight(product)]
    if bias is not None:
        inputs.append(_bias(product, bias))
    if product.attributes is not None:
        return product.node("Conv", *inputs, **product.attributes)
    # In any other form onnxruntime makes a MatMulNBits of it, which rounds the inputs to 8 bits.
    return product.node("Gemm", *inputs, transB=1)


def _dequantized_weight(product: Product) -> str:
    codes, scope = product.codes(), product.scope
    if product.grouped:
        place, scales, points = {"axis": 1, "block_size": codes.group_size}, codes.scale, codes.zero_point
    elif product.weight.spec.strategy == "tensor" and codes.one_scale:
        place, scales, points = {}, codes.scale[0, 0], codes.zero_point[0, 0]
    else:
        place, scales, points = {"axis": 0}, codes.scale[:, 0], codes.zero_point[:, 0]
    # Integer kernels take 8 bits: runtimes widen a constant once, when they load it.
    widen = product.grids.input is not None and not product.grouped
    add = codes.eight_bits if widen else codes.packed
    inputs = [add(product.graph, scope), product.constant("weight_scale", scales)]
    if codes.zero_point.any():
        bits = 8 if widen else codes.bits
        inputs.append(product.graph.packed(f"{scope}/weight_zero_point", np.asarray(points), bits))
    return product.node("DequantizeLinear", *inputs, **place)


def _bias(product: Product, bias: np.ndarray) -> str:
    if bias.dtype != np.int32:
        return product.constant("bias", bias)
    grid = product.grids.input
    assert grid is not None
    step = np.float32(grid.scale) * product.weight.scale[:, 0]
    return product.node(
        "DequantizeLinear", product.constant("bias", bias), product.constant("bias_scale", step), axis=0
    )
