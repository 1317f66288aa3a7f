"""Names in a graph and its nested graphs: what is constant, which weight stands behind it, and who reads that."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmq.onnx.element_types import FLOATS
from llmq.onnx.opsets import STANDARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

__all__ = ["Constant", "Holder", "Scope", "Use", "readers", "scopes_of"]


@dataclass(frozen=True, eq=False)
class Holder:
    """What holds a constant tensor: an initializer, or a node `Constant`.

    Parameters
    ----------
    name : str
        Of the initializer, or of the node's output.
    tensor : onnx.TensorProto
    scope : Scope
    node : onnx.NodeProto or None
        The node `Constant`.
    """

    name: str
    tensor: onnx.TensorProto
    scope: Scope
    node: onnx.NodeProto | None = None


@dataclass(frozen=True)
class Constant:
    """A value that is a held tensor but for its orientation and type.

    Parameters
    ----------
    holder : Holder
    data_type : int
        After nodes `Cast`.
    transposed : bool
        Whether a 2-D tensor is transposed on its way.
    """

    holder: Holder
    data_type: int
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Use:
    """A node that reads a constant: `node.input[index]`."""

    scope: Scope
    node: onnx.NodeProto
    index: int
    constant: Constant


@dataclass(eq=False)
class Scope:
    """A graph and the names that it defines; those of the graph around it are visible too.

    Parameters
    ----------
    graph : onnx.GraphProto
    parent : Scope or None
    """

    graph: onnx.GraphProto
    parent: Scope | None = None
    nodes: list[onnx.NodeProto] = field(init=False)
    inputs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        # References keep the wrappers of protobuf alive: nodes are told apart by identity.
        self.nodes = list(self.graph.node)
        self.inputs = frozenset(value.name for value in self.graph.input)
        self._constants: dict[str, Constant] = {}
        self._others = set(self.inputs)
        self._passing: dict[int, Constant] = {}
        for tensor in self.graph.initializer:
            self._constants[tensor.name] = Constant(Holder(tensor.name, tensor, self), tensor.data_type)
            self._others.discard(tensor.name)
        for node in self.nodes:
            found = self._follow(node)
            if found is not None:
                self._constants[node.output[0]] = self._passing[id(node)] = found
            else:
                self._others.update(node.output)

    @property
    def holders(self) -> list[Holder]:
        """Tensors that this graph itself holds, in its order."""
        found = {id(c.holder): c.holder for c in self._constants.values() if c.holder.scope is self}
        return list(found.values())

    def constant(self, name: str) -> Constant | None:
        """The constant that a name stands for, in this graph or those around it."""
        if not name:
            return None
        if name in self._constants or name in self._others or self.parent is None:
            return self._constants.get(name)
        return self.parent.constant(name)

    def passes_on(self, node: onnx.NodeProto) -> Constant | None:
        """The constant that a node only passes on; None for any other node."""
        return self._passing.get(id(node))

    def _follow(self, node: onnx.NodeProto) -> Constant | None:
        """What a node makes of a constant without changing its values."""
        if node.domain not in STANDARD or len(node.output) != 1:
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant":
            value = attributes.get("value")
            if value is None or not value.HasField("t"):
                return None
            return Constant(Holder(node.output[0], value.t, self, node), value.t.data_type)
        if node.op_type not in ("Identity", "Transpose", "Cast") or not len(node.input):
            return None
        source = self.constant(node.input[0])
        if source is None or node.op_type == "Identity":
            return source
        if node.op_type == "Cast":
            to = attributes["to"].i
            return replace(source, data_type=to) if to in FLOATS and source.data_type in FLOATS else None
        flips = len(source.holder.tensor.dims) == 2 and (
            "perm" not in attributes or list(attributes["perm"].ints) == [1, 0]
        )
        return replace(source, transposed=not source.transposed) if flips else None


def scopes_of(graph: onnx.GraphProto, parent: Scope | None = None) -> Iterator[Scope]:
    """A graph and all graphs nested in it, the outer before the inner."""
    scope = Scope(graph, parent)
    yield scope
    for node in scope.nodes:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from scopes_of(inner, scope)


def readers(scopes: list[Scope]) -> dict[Holder, list[Use]]:
    """Who reads each constant, directly or through nodes that only pass it on."""
    found: dict[Holder, list[Use]] = defaultdict(list)
    for scope in scopes:
        for node in scope.nodes:
            if scope.passes_on(node) is not None:
                continue
            for index, name in enumerate(node.input):
                constant = scope.constant(name)
                if constant is not None:
                    found[constant.holder].append(Use(scope, node, index, constant))
    return found
