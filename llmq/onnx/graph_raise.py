"""Raising the version of the standard operators that a model uses, where quantized weights need newer ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
from onnx import version_converter

from llmq.errors import first_line
from llmq.onnx.graph_check import check_graph, skeleton
from llmq.onnx.opsets import STANDARD, least_ir_version, opset_of

if TYPE_CHECKING:
    from llmq.onnx.graph_file import GraphFile

__all__ = ["CannotRaiseError", "raise_opset"]


class CannotRaiseError(Exception):
    """A model that cannot be raised; the text says why."""


def raise_opset(file: GraphFile, opset: int) -> GraphFile:
    """Return a model with operators of a newer version that compute the same, by `onnx.version_converter`.

    The converter sees the structure without data; names, data and all that it does not know are put back.

    Raises
    ------
    CannotRaiseError
        It has nested graphs, functions or sparse tensors, which the converter leaves alone, or an operator that
        cannot be converted.
    """
    graph = file.proto.graph
    if opset > onnx.defs.onnx_opset_version():
        raise CannotRaiseError("this version of onnx has no such operators")
    if len(file.proto.functions) or len(graph.sparse_initializer) or _has_nested(graph):
        raise CannotRaiseError("a model with nested graphs or functions cannot be raised")
    try:
        converted = version_converter.convert_version(skeleton(file, checked=False), opset)
    except Exception as error:  # whatever the C++ code throws
        raise CannotRaiseError(f"raising it failed: {first_line(error)}") from None
    raised = replace(file, proto=_put_back(file.proto, converted, opset))
    check_graph(raised)
    return raised


def _has_nested(graph: onnx.GraphProto) -> bool:
    return any(a.HasField("g") or len(a.graphs) for node in graph.node for a in node.attribute)


def _put_tensors_back(origin: onnx.NodeProto, node: onnx.NodeProto) -> None:
    """Let the tensors of a node's attributes, such as that of `Constant`, be what they were before the skeleton."""
    held = {attribute.name: attribute for attribute in origin.attribute}
    for attribute in node.attribute:
        before = held.get(attribute.name)
        if before is not None and (before.HasField("t") or len(before.tensors)):
            attribute.CopyFrom(before)


def _put_back(original: onnx.ModelProto, converted: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Take nodes and new small tensors from `converted`, and everything else from `original`."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    known = {tensor.name for tensor in original.graph.initializer}
    origins = {node.output[0]: node for node in original.graph.node if len(node.output)}
    del model.graph.node[:]
    for node in converted.graph.node:
        origin = origins.get(node.output[0])
        if origin is not None and origin.op_type == node.op_type:
            _put_tensors_back(origin, node)
            node.doc_string = origin.doc_string
            del node.metadata_props[:]
            node.metadata_props.extend(origin.metadata_props)
        model.graph.node.append(node)
    model.graph.initializer.extend(t for t in converted.graph.initializer if t.name not in known)
    for entry in model.opset_import:
        if entry.domain in STANDARD:
            entry.version = opset
    model.ir_version = max(original.ir_version, least_ir_version(opset))
    assert opset_of(model) == opset
    return model
