"""A graph under construction: nodes in the order in which they run, and their constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.onnx.external import ExternalTensor

__all__ = ["Graph"]


class Graph:
    """Nodes and initializers; every value is named after the node that makes it."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    @property
    def initializers(self) -> tuple[TensorProto, ...]:
        """Constants, in the order in which they were first used."""
        return tuple(self._initializers.values())

    def node(self, operator: str, inputs: Sequence[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return that output's name, which is the node's."""
        self.several(operator, inputs, (name,), domain=domain, **attributes)
        return name

    def several(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> None:
        """Add a node named as its first output."""
        self.nodes.append(
            helper.make_node(operator, list(inputs), list(outputs), outputs[0], domain=domain, **attributes)
        )

    def external(self, tensor: ExternalTensor) -> str:
        """Return the name of an initializer outside the graph; the same tensor may be asked for again."""
        self._initializers.setdefault(tensor.name, tensor.proto())
        return tensor.name

    def constant(self, values: Any, dtype: type[np.generic] = np.int64) -> str:
        """Return the name of a small constant within the graph; equal ones are one."""
        array = np.asarray(values, dtype)
        key = (array.tobytes(), array.dtype.name, array.shape)
        if key not in self._constants:
            name = self._constants[key] = f"constant.{len(self._constants)}"
            self._initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]
