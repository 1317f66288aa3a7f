"""Why a tensor of a graph is kept, whatever the user wishes."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any, Final

import onnx

from llmq.architectures.roles import MIN_ELEMENTS
from llmq.onnx.element_types import FLOATS, element_bits, type_name
from llmq.onnx.opsets import STANDARD

if TYPE_CHECKING:
    from llmq.onnx.graph_scopes import Holder, Use

__all__ = ["attribute", "fixed_reason", "may_be_weight", "places_of"]

_TYPE: Final = onnx.TensorProto
_ACTIVATIONS: Final = (_TYPE.FLOAT, _TYPE.FLOAT16, _TYPE.BFLOAT16)
_MATRIX_READERS: Final = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
"""Operators whose weights are quantized, with the input that is the weight."""


def places_of(node: onnx.NodeProto) -> list[str]:
    """A node's name and, as torch's exporter tells it, the module that it belongs to: the last scope but its own."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    modules = re.findall(r"'([^']*)'", scopes)[1:-1]
    return [name for name in (node.name, *modules[-1:]) if name]


def may_be_weight(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor may be a weight: floats, and many small integers, which other tools made of floats."""
    bits = element_bits(tensor.data_type)
    narrow = bits is not None and bits <= 8 and tensor.data_type != _TYPE.BOOL
    return tensor.data_type in FLOATS or (narrow and prod(tensor.dims) >= MIN_ELEMENTS)


def fixed_reason(holder: Holder, uses: list[Use], *, given: bool, returned: bool) -> str:
    """Why a tensor is kept, whatever the user wishes; empty if it need not be."""
    tensor, rank = holder.tensor, len(holder.tensor.dims)
    if tensor.data_type not in FLOATS:
        return f"{type_name(tensor.data_type)} already"
    unread = [reason for use in uses if (reason := _unreadable(use))]
    rules = (
        (not uses, "read by nothing"),
        (given, "an input too, so that callers may replace it"),
        (returned, "an output of a graph"),
        (rank < 2, f"{rank}-D"),
        (bool(unread), unread[0] if unread else ""),
        (prod(tensor.dims) < MIN_ELEMENTS, f"fewer than {MIN_ELEMENTS} elements"),
    )
    return next((reason for hit, reason in rules if hit), "")


def _unreadable(use: Use) -> str:
    """Why a node cannot read a quantized weight; empty if it can."""
    node, rank = use.node, len(use.constant.holder.tensor.dims)
    op = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
    place = _MATRIX_READERS.get(op)
    if place is None or place != use.index:
        where = {("MatMul", 0): "the left factor of MatMul", ("Gemm", 0): "the left factor of Gemm"}
        return where.get((op, use.index), f"read by {op}")
    if use.constant.data_type not in _ACTIVATIONS:
        return type_name(use.constant.data_type)
    if op == "Conv":
        return "" if rank >= 3 else f"{rank}-D weight of Conv"
    if rank != 2:
        return f"{rank}-D weight of {op}"
    if op == "Gather" and attribute(node, "axis", 0) not in (0, -2):
        return "Gather along columns"
    return ""


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)
