"""The graph that an integer network becomes, while it grows: nodes, initializers, and the tensors between layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import defs, helper, numpy_helper

from llmq.onnx.element_types import code_type, packed_codes
from llmq.onnx.opsets import FOUR_BIT_OPSET, TWO_BIT_OPSET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import NodeProto, TensorProto

    from llmq.integer import ActivationGrid

__all__ = ["Graph", "Style", "Value"]

Style = Literal["qdq", "qoperator"]


@dataclass(frozen=True)
class Value:
    """A tensor between two layers.

    Parameters
    ----------
    name : str
    rank : int
        Number of axes, the batch included.
    grid : ActivationGrid or None
        Of values that are integers to the network; None for floats.
    rounded : bool
        Whether the tensor holds the codes of the grid; else float32 that is yet to be rounded to it.
    """

    name: str
    rank: int
    grid: ActivationGrid | None = None
    rounded: bool = False


class Graph:
    """Nodes in the order in which they run.

    Parameters
    ----------
    style : {"qdq", "qoperator"}
    signed : bool
        Whether codes of 8 bits are int8, else uint8.
    opset : int or None
        Version of the operators; None takes the lowest that has the types wanted.

    Attributes
    ----------
    nodes : list of NodeProto
    initializers : list of TensorProto
    encoded : dict
        Names of codes by the tensor and the grid that they were rounded from.
    """

    def __init__(self, style: Style = "qdq", *, signed: bool = False, opset: int | None = None) -> None:
        self.style = style
        self.signed = signed
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.encoded: dict[tuple[Any, ...], Any] = {}
        self._wanted = opset
        self._opset = opset or FOUR_BIT_OPSET
        self._names: Counter[str] = Counter()

    @property
    def opset(self) -> int:
        """Version of the operators that the nodes and types so far need, or that was asked for."""
        return self._opset

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Of codes of activations, and of weights of 8 bits."""
        return np.dtype(np.int8 if self.signed else np.uint8)

    @property
    def dynamic_operator(self) -> bool:
        """Whether ranges of 8 bits are found by `DynamicQuantizeLinear`, which gives uint8."""
        return self.style == "qoperator" and not self.signed

    def offset(self, bits: int) -> int:
        """What is added to codes of activations, `-2**(bits-1)` and up, before they are stored."""
        return 0 if self.signed else 1 << (bits - 1)

    def node(self, operator: str, inputs: Sequence[str], scope: str, **attributes: Any) -> str:
        """Add a node with one output, and return the name that both have."""
        return self.node_of_many(operator, inputs, scope, 1, **attributes)[0]

    def node_of_many(
        self, operator: str, inputs: Sequence[str], scope: str, outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs, and return their names."""
        name = self._unique(f"{scope}/{operator}")
        names = (name, *(f"{name}:{i}" for i in range(1, outputs)))
        self.nodes.append(helper.make_node(operator, list(inputs), list(names), name=name, **attributes))
        return names

    def constant(self, name: str, array: Any) -> str:
        """Add an initializer of the dtype of an array."""
        name = self._unique(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def packed_bits(self, bits: int) -> int:
        """Narrowest width of an ONNX type that holds codes of `bits` bits: 2, 4 or 8."""
        two = self._wanted is None or self._wanted >= TWO_BIT_OPSET
        if bits <= 2 and two and defs.onnx_opset_version() >= TWO_BIT_OPSET:
            return 2
        return 4 if bits <= 4 else 8

    def packed(self, name: str, codes: np.ndarray, bits: int) -> str:
        """Add an initializer of int8 or uint8 codes that hold in `bits` bits (2, 4 or 8), packed low bits first."""
        if bits == 8:
            return self.constant(name, codes)
        if bits == 2:
            self._opset = max(self._opset, TWO_BIT_OPSET)
        name = self._unique(name)
        kind, data = code_type(bits, signed=codes.dtype.kind == "i"), packed_codes(codes, bits).tobytes()
        self.initializers.append(helper.make_tensor(name, kind, codes.shape, data, raw=True))
        return name

    def cast(self, name: str, dtype: Any, scope: str) -> str:
        """Add a `Cast` to a NumPy dtype."""
        return self.node("Cast", [name], scope, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"
