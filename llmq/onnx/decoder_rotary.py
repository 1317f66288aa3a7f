"""Rotary positions in a graph: cosines and sines of any positions, computed when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from llmq.runtime.rotary import frequencies

if TYPE_CHECKING:
    from llmq.architectures import Rope
    from llmq.onnx.decoder_graph import Graph

__all__ = ["add_rotation"]


def add_rotation(graph: Graph, rope: Rope, head_dim: int, position_ids: str) -> tuple[str, str]:
    """Add what turns positions into angles.

    Parameters
    ----------
    graph : Graph
    rope : Rope
    head_dim : int
        Elements of a head.
    position_ids : str
        Name of an int64 input (batch, sequence).

    Returns
    -------
    (str, str)
        Names of cosines and sines, float32 (batch, sequence, head_dim / 2).
    """
    positions = graph.node("Cast", [position_ids], "rotary.positions", to=TensorProto.FLOAT)
    column = graph.node("Unsqueeze", [positions, graph.constant([2])], "rotary.column")
    if rope.kind == "dynamic":
        turns = _stretched_frequencies(graph, rope, head_dim, position_ids)
    else:
        turns = graph.constant(frequencies(rope, head_dim, 0), np.float32)
    angles = graph.node("Mul", [column, turns], "rotary.angles")
    found = [graph.node(name, [angles], f"rotary.{name.lower()}") for name in ("Cos", "Sin")]
    if rope.attention_factor != 1.0:
        factor = graph.constant(rope.attention_factor, np.float32)
        found = [graph.node("Mul", [name, factor], f"{name}.scaled") for name in found]
    return found[0], found[1]


def _stretched_frequencies(graph: Graph, rope: Rope, head_dim: int, position_ids: str) -> str:
    """Frequencies of the kind `dynamic`, float32 (head_dim / 2,), of a text as long as its last position says.

    As `llmq.runtime.rotary.frequencies` computes them: `theta * stretch ** (head_dim / (head_dim - 2))` takes the
    place of `theta`, and the stretch is at least one.
    """
    last = graph.node("ReduceMax", [position_ids], "rotary.last", keepdims=0)
    length = graph.node("Add", [last, graph.constant(1)], "rotary.length")
    longer = graph.node("Max", [length, graph.constant(rope.original_max_position)], "rotary.longer")
    float_length = graph.node("Cast", [longer], "rotary.longer.float32", to=TensorProto.FLOAT)

    def number(value: float) -> str:
        return graph.constant(value, np.float32)

    scaled = graph.node("Mul", [float_length, number(rope.factor / rope.original_max_position)], "rotary.scaled")
    stretch = graph.node("Sub", [scaled, number(rope.factor - 1.0)], "rotary.stretch")
    raised = graph.node("Pow", [stretch, number(head_dim / (head_dim - 2))], "rotary.raised")
    theta = graph.node("Mul", [raised, number(rope.theta)], "rotary.theta")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = graph.node("Pow", [theta, graph.constant(exponents, np.float32)], "rotary.powers")
    return graph.node("Reciprocal", [powers], "rotary.turns")
