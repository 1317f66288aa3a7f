"""Linears and embeddings of a checkpoint as nodes: packed ones multiply their codes, dense ones blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper

from llmq.onnx.decoder_rows import RowProduct, multiply_in_blocks
from llmq.onnx.external import checkpoint_tensor
from llmq.onnx.matmul_nbits import Blocks, blocks_of, has_fast_kernel, store_parts
from llmq.onnx.opsets import MICROSOFT
from llmq.runtime.linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto

    from llmq.checkpoint.header import TensorInfo
    from llmq.onnx.decoder_graph import Graph
    from llmq.onnx.external import ExternalTensor, OwnData
    from llmq.onnx.matmul_nbits import Compute, PackedParts
    from llmq.runtime.linear import Linear

__all__ = ["Modules"]

_BYTE: Final = 8
_ACCURACY_LEVELS: Final[dict[Compute, int]] = {"float32": 1, "int8": 4}


@dataclass(frozen=True, eq=False)
class Modules:
    """Adds modules of a checkpoint to a graph.

    Parameters
    ----------
    graph : Graph
    infos : mapping
        Tensors of the checkpoint by name.
    own : OwnData
        Takes what the checkpoint does not hold as graphs want it.
    compute : {"int8", "float32"}
        Whether products with packed weights may quantize activations to int8.
    """

    graph: Graph
    infos: Mapping[str, TensorInfo]
    own: OwnData
    compute: Compute
    _known: dict[str, tuple[PackedParts, Blocks]] = field(default_factory=dict, init=False, repr=False)

    @property
    def blocks(self) -> dict[str, Blocks]:
        """How the packed weights added so far are cut, by module."""
        return {module: blocks for module, (_, blocks) in self._known.items()}

    def vector(self, values: np.ndarray, name: str) -> str:
        """Add a norm's weight or a bias, float32 (size,), under the name of its tensor."""
        return self.graph.external(self.own.add(name, np.float32, values.shape, lambda: (values,)))

    def linear(self, linear: Linear, module: str, x: str) -> str:
        """Multiply `x`, float32 (batch, sequence, in_features), by a module's weight and add its bias."""
        name = f"{module}.output"
        product = name if linear.bias is None else f"{module}.product"
        if isinstance(linear, PackedLinear):
            self._multiply_packed(linear, module, x, product)
        else:
            self._multiply_dense(linear.shape, module, x, product)
        if linear.bias is not None:
            self.graph.node("Add", [product, self.vector(linear.bias, f"{module}.bias")], name)
        return name

    def embedding(self, table: Linear, module: str, ids: str) -> str:
        """Look up rows of a module's weight, float32 (batch, sequence, in_features)."""
        name = f"{module}.rows"
        if not isinstance(table, PackedLinear):
            found = self.graph.node("Gather", [self.graph.external(self._dense(module)), ids], f"{name}.stored", axis=0)
            return self.graph.node("Cast", [found], name, to=TensorProto.FLOAT)
        parts, blocks = self._parts(table, module)
        codes, scales, *zero_points = (self.graph.external(tensor) for tensor in parts.tensors)
        return self.graph.node(
            "GatherBlockQuantized",
            [codes, ids, scales, *zero_points],
            name,
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            **blocks.attributes,
        )

    def _multiply_packed(self, linear: PackedLinear, module: str, x: str, name: str) -> None:
        rows, columns = linear.shape
        parts, blocks = self._parts(linear, module)
        shape = (rows, columns // blocks.size, blocks.size * blocks.bits // 8)
        codes = replace(parts.codes, name=f"{parts.codes.name}.blocks", shape=shape)
        tensors = (codes, *parts.tensors[1:])
        fixed = blocks.attributes | {"K": columns, "accuracy_level": _ACCURACY_LEVELS[self.compute]}
        if has_fast_kernel(blocks, self.compute):
            inputs = [x, *(self.graph.external(tensor) for tensor in tensors)]
            self.graph.node("MatMulNBits", inputs, name, domain=MICROSOFT, N=rows, **fixed)
            return

        def nodes(inner: Sequence[str], result: str, count: int) -> list[NodeProto]:
            if blocks.bits == _BYTE:
                return self._multiply_bytes(x, inner, result)
            attributes: dict[str, Any] = fixed | {"N": count}
            return [helper.make_node("MatMulNBits", [x, *inner], [result], domain=MICROSOFT, **attributes)]

        multiply_in_blocks(self.graph, RowProduct(name, linear.shape, tensors, nodes))

    def _multiply_bytes(self, x: str, inner: Sequence[str], result: str) -> list[NodeProto]:
        """Widen codes of 8 bits in plain operators, several times quicker than `MatMulNBits` without a kernel does."""
        codes, scales, *zero_points = inner
        graph, nodes, names = self.graph, [], [f"{result}.{i}" for i in range(8)]

        def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(operator, inputs, [name], **attributes))
            return name

        last = graph.constant([2])
        middle = graph.constant(float(1 << _BYTE >> 1), np.float32)
        if zero_points:
            wide = node("Cast", zero_points, names[0], to=TensorProto.FLOAT)
            middle = node("Unsqueeze", [wide, last], names[1])
        wide = node("Cast", [codes], names[2], to=TensorProto.FLOAT)  # (rows, n_blocks, block_size)
        centred = node("Sub", [wide, middle], names[3])
        scaled = node("Mul", [centred, node("Unsqueeze", [scales, last], names[4])], names[5])
        flat = node("Reshape", [scaled, graph.constant([0, -1])], names[6])  # (rows, in_features)
        nodes += _multiply_floats(x, flat, result)
        return nodes

    def _multiply_dense(self, shape: tuple[int, int], module: str, x: str, name: str) -> None:
        def nodes(inner: Sequence[str], result: str, _rows: int) -> list[NodeProto]:
            wide = f"{result}.wide"
            cast = helper.make_node("Cast", list(inner), [wide], to=TensorProto.FLOAT)
            return [cast, *_multiply_floats(x, wide, result)]

        multiply_in_blocks(self.graph, RowProduct(name, shape, (self._dense(module),), nodes))

    def _dense(self, module: str) -> ExternalTensor:
        return checkpoint_tensor(self.infos[f"{module}.weight"])

    def _parts(self, linear: PackedLinear, module: str) -> tuple[PackedParts, Blocks]:
        """Parts of a packed weight; a tied one is asked for twice."""
        if module not in self._known:
            blocks = blocks_of(linear.weight.spec, module)
            self._known[module] = store_parts(linear.weight, module, blocks, self.infos, self.own), blocks
        return self._known[module]


def _multiply_floats(x: str, weight: str, result: str) -> list[NodeProto]:
    turned = f"{result}.turned"
    return [
        helper.make_node("Transpose", [weight], [turned], perm=[1, 0]),
        helper.make_node("MatMul", [x, turned], [result]),
    ]
