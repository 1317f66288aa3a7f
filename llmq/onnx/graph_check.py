"""What a model must be before its weights are looked at, and a copy of its structure that needs no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import onnx

from llmq.errors import InputError, UnsupportedError, first_line
from llmq.onnx.opsets import opset_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.onnx.graph_file import GraphFile

__all__ = ["check_graph", "every_tensor", "skeleton"]

_OLDEST_OPSET: Final = 7
"""Before it, operators broadcast by attributes."""

_EXTERNAL: Final = onnx.TensorProto.EXTERNAL


def check_graph(file: GraphFile) -> None:
    """Refuse a model that is malformed, or newer or older than what is understood.

    Raises
    ------
    InputError
        What `onnx.checker` finds: cycles, missing values, operators that do not exist, wrong attributes.
    UnsupportedError
        A version of the format or of the operators that is not known here, or a model for training.
    """
    name, proto = file.path.name, file.proto
    if not 3 <= proto.ir_version <= onnx.IR_VERSION:
        raise UnsupportedError(
            "unknown version of the ONNX format",
            file=name,
            expected=f"IR version 3 to {onnx.IR_VERSION}",
            found=proto.ir_version,
            hint="pip install --upgrade onnx",
        )
    newest = onnx.defs.onnx_opset_version()
    opset = opset_of(proto)
    if not _OLDEST_OPSET <= opset <= newest:
        hint = "pip install --upgrade onnx" if opset > newest else "raise it with onnx.version_converter"
        expected = f"opset {_OLDEST_OPSET} to {newest}"
        raise UnsupportedError("unknown set of operators", file=name, expected=expected, found=opset, hint=hint)
    if len(proto.training_info):
        raise UnsupportedError("a model for training", file=name, hint="export it for inference")
    if not _is_text(proto):
        raise InputError("not a sound ONNX model: a name is not UTF-8", file=name, hint="export it again")
    names = [tensor.name for tensor in proto.graph.initializer]
    if len(set(names)) < len(names):
        raise InputError("two initializers of one name", file=name)
    try:
        onnx.checker.check_model(skeleton(file))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        what = f"not a sound ONNX model: {first_line(error)}"
        raise InputError(what, file=name, hint="onnx.checker tells more") from None


def _is_text(message: Any) -> bool:
    """Whether all text in a message is UTF-8; protobuf gives other text as bytes."""
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


def skeleton(file: GraphFile, *, checked: bool = True) -> onnx.ModelProto:
    """Copy a structure so that nothing looks for the data that stands elsewhere.

    Where the copy is to be checked, empty tensors of the same rank take the places of those that lack their data, and
    inputs and outputs of any rank, which the checker does not know but runtimes do, get one; else they keep their
    shapes, and their data is said to lie in a file.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(file.proto)
    for value in (*copy.graph.input, *copy.graph.output):
        if checked and value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    count = len(copy.graph.initializer)
    for i, tensor in enumerate(every_tensor(copy)):
        if tensor.data_location == _EXTERNAL or (i < count and tensor.name in file.regions):
            del tensor.external_data[:]
            if checked:
                tensor.ClearField("data_location")
                rank = len(tensor.dims)
                del tensor.dims[:]
                tensor.dims.extend([0] * max(1, rank))
            else:
                tensor.data_location = _EXTERNAL
                tensor.external_data.add(key="location", value=file.path.name)
    return copy


def every_tensor(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and attributes, of nested graphs and of functions too."""
    yield from _in_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _in_node(node)
        for attribute in function.attribute_proto:
            yield from _in_attribute(attribute)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _in_attribute(attribute)


def _in_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)
    if attribute.HasField("g"):
        yield from _in_graph(attribute.g)
    for graph in attribute.graphs:
        yield from _in_graph(graph)
