"""Activations of integer networks in a graph: rounded to codes by ranges known beforehand or found at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from llmq.errors import UnsupportedError
from llmq.observers.parameters import LEAST_SCALE

if TYPE_CHECKING:
    from llmq.integer import ActivationGrid
    from llmq.onnx.integer_graph import Graph, Value

__all__ = ["Codes", "clipped", "codes_of", "encode", "expect", "floats_of", "static_parameters"]


@dataclass(frozen=True)
class Codes:
    """Codes of activations, and what they stand for: ``scale * (code - zero_point)``.

    Parameters
    ----------
    name, scale, zero_point : str
        Tensors; the last two are scalars, or have an item for each item of the first axis.
    grid : ActivationGrid
    rank : int
        Number of axes of the codes.
    """

    name: str
    scale: str
    zero_point: str
    grid: ActivationGrid
    rank: int

    @property
    def by_token(self) -> bool:
        """Whether each token has a scale."""
        return self.grid.spec.strategy == "token"

    def dequantize(self, graph: Graph, scope: str) -> str:
        """Add the float32 tensor that the codes stand for."""
        key = self.name, "floats"
        if key not in graph.encoded:
            graph.encoded[key] = self._dequantize(graph, scope)
        return str(graph.encoded[key])

    def _dequantize(self, graph: Graph, scope: str) -> str:
        if not self.by_token:
            return graph.node("DequantizeLinear", [self.name, self.scale, self.zero_point], scope)
        # onnxruntime fuses a DequantizeLinear with what follows into kernels that take one zero point only.
        codes, point = (graph.cast(name, np.float32, scope) for name in (self.name, self.broadcast_point(graph, scope)))
        return graph.node("Mul", [graph.node("Sub", [codes, point], scope), self.broadcast_scale(graph, scope)], scope)

    def broadcast_scale(self, graph: Graph, scope: str) -> str:
        """The scale in a shape that broadcasts against the codes."""
        return self._broadcast(graph, self.scale, scope)

    def broadcast_point(self, graph: Graph, scope: str) -> str:
        """The zero point, int32, likewise."""
        return self._broadcast(graph, graph.cast(self.zero_point, np.int32, scope), scope)

    def _broadcast(self, graph: Graph, name: str, scope: str) -> str:
        if not self.by_token:
            return name
        shape = graph.constant(f"{scope}/token_shape", np.array([-1, *[1] * (self.rank - 1)]))
        return graph.node("Reshape", [name, shape], scope)


def _same_grid(a: ActivationGrid, b: ActivationGrid) -> bool:
    """Whether codes of one static grid are codes of another."""
    return (a.spec.bits, a.scale, a.zero_point) == (b.spec.bits, b.scale, b.zero_point)


def codes_of(graph: Graph, value: Value, scope: str) -> Codes:
    """Codes of a value that has a grid."""
    assert value.grid is not None
    if not value.rounded:
        return encode(graph, value, value.grid, scope)
    return Codes(value.name, *static_parameters(graph, value.grid, scope), value.grid, value.rank)


def floats_of(graph: Graph, value: Value, scope: str) -> str:
    """The float32 tensor that a value stands for, once rounded if it has a grid."""
    return value.name if value.grid is None else codes_of(graph, value, scope).dequantize(graph, scope)


def encode(graph: Graph, x: Value, grid: ActivationGrid, scope: str) -> Codes:
    """Round float32 (n, ...) to codes; tokens are the items of the first axis."""
    key = (x.name, grid.spec, *_numbers(grid))
    if key not in graph.encoded:
        graph.encoded[key] = _encode(graph, x, grid, scope)
    found: Codes = graph.encoded[key]
    return found


def _numbers(grid: ActivationGrid) -> tuple[float, int]:
    if grid.scale is None or grid.zero_point is None:
        return 0.0, 0
    return float(grid.scale), int(grid.zero_point)


def _encode(graph: Graph, x: Value, grid: ActivationGrid, scope: str) -> Codes:
    spec = grid.spec
    if grid.scale is not None:
        scale, point = static_parameters(graph, grid, scope)
    elif graph.dynamic_operator and (spec.bits, spec.symmetric, spec.strategy) == (8, False, "tensor"):
        name, scale, point = graph.node_of_many("DynamicQuantizeLinear", [x.name], scope, 3)
        return Codes(name, scale, point, grid, x.rank)
    else:
        scale, point = _found_parameters(graph, x, grid, scope)
    axis = {"axis": 0} if spec.strategy == "token" else {}
    codes = graph.node("QuantizeLinear", [x.name, scale, point], scope, **axis)
    return Codes(clipped(graph, codes, spec.bits, scope), scale, point, grid, x.rank)


def clipped(graph: Graph, codes: str, bits: int, scope: str) -> str:
    """Keep codes within their bits; 8 are kept by the type."""
    if bits == 8:
        return codes
    low = graph.offset(bits) - (1 << (bits - 1))
    limits = [np.asarray(end, graph.code_dtype) for end in (low, low + (1 << bits) - 1)]
    lowest = graph.constant(f"{scope}/lowest_code", limits[0]) if graph.signed else ""
    return graph.node("Clip", [codes, lowest, graph.constant(f"{scope}/highest_code", limits[1])], scope)


def static_parameters(graph: Graph, grid: ActivationGrid, scope: str) -> tuple[str, str]:
    """Scale and zero point of a static grid as scalars; grids that are the same share them."""
    key = ("grid", grid.spec.bits, *_numbers(grid))
    if key not in graph.encoded:
        assert grid.zero_point is not None
        point = np.asarray(int(grid.zero_point) + graph.offset(grid.spec.bits), graph.code_dtype)
        graph.encoded[key] = (
            graph.constant(f"{scope}/scale", np.asarray(grid.scale, np.float32)),
            graph.constant(f"{scope}/zero_point", point),
        )
    scale, point = graph.encoded[key]
    return scale, point


def _found_parameters(graph: Graph, x: Value, grid: ActivationGrid, scope: str) -> tuple[str, str]:
    """Scale and zero point found at run time, step by step as `llmq_kernels.inputs.input_parameters` does."""
    spec = grid.spec
    offset, by_token = graph.offset(spec.bits), spec.strategy == "token"
    least = graph.constant(f"{scope}/least_scale", LEAST_SCALE)
    steps = (1 << (spec.bits - 1)) - 1 if spec.symmetric else (1 << spec.bits) - 1
    count = graph.constant(f"{scope}/steps", np.float32(steps))
    flat = graph.node("Flatten", [x.name], scope, axis=1) if by_token and x.rank != 2 else x.name
    axes = [graph.constant(f"{scope}/axes", np.array([1]))] if by_token else []
    if spec.symmetric:
        peak = graph.node("ReduceMax", [graph.node("Abs", [flat], scope), *axes], scope, keepdims=0)
        scale = graph.node("Max", [graph.node("Div", [peak, count], scope), least], scope)
        return scale, _constant_point(graph, scale, offset, scope, by_token=by_token)
    zero = graph.constant(f"{scope}/zero", np.float32(0))
    low = graph.node("Min", [graph.node("ReduceMin", [flat, *axes], scope, keepdims=0), zero], scope)
    high = graph.node("Max", [graph.node("ReduceMax", [flat, *axes], scope, keepdims=0), zero], scope)
    parts = [graph.node("Div", [end, count], scope) for end in (high, low)]
    scale = graph.node("Max", [graph.node("Sub", parts, scope), least], scope)
    below = graph.node("Round", [graph.node("Div", [graph.node("Neg", [low], scope), scale], scope)], scope)
    if shift := offset - (1 << (spec.bits - 1)):
        below = graph.node("Add", [below, graph.constant(f"{scope}/shift", np.float32(shift))], scope)
    return scale, graph.cast(below, graph.code_dtype, scope)


def _constant_point(graph: Graph, scale: str, point: int, scope: str, *, by_token: bool) -> str:
    """The same zero point for each scale."""
    if not by_token:
        return graph.constant(f"{scope}/zero_point", np.asarray(point, graph.code_dtype))
    shape = graph.node("Shape", [scale], scope)
    value = numpy_helper.from_array(np.array([point], graph.code_dtype))
    return graph.node("ConstantOfShape", [shape], scope, value=value)


def expect(value: Value, grid: ActivationGrid, scope: str) -> None:
    """Refuse integers of another grid than a layer was made for.

    Raises
    ------
    UnsupportedError
        They are of another grid.
    """
    assert value.grid is not None
    if grid.scale is None or not _same_grid(value.grid, grid):
        raise UnsupportedError("integers of another grid come in", tensor=scope)
