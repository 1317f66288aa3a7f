"""The nodes that read a quantized weight, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from llmq.onnx.opsets import MICROSOFT
from llmq.onnx.quantize_forms import Kind, Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.onnx.graph_scopes import Scope, Use

__all__ = ["BUILDERS", "Emitter", "Names", "Site"]

_FLOAT: Final = onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class Site:
    """A node to replace: what it reads, how that is stored, and the names of the tensors that hold it, by suffix."""

    use: Use
    layout: Layout
    parts: dict[str, str]


class Names:
    """Names that no value of the model has, and the small constants that were given some of them.

    Attributes
    ----------
    constants : dict
        Tensors by value, for the outermost graph.
    """

    def __init__(self, scopes: list[Scope]) -> None:
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._taken: set[str] = set()
        for scope in scopes:
            graph = scope.graph
            self._taken.update(t.name for t in graph.initializer)
            self._taken.update(v.name for values in (graph.input, graph.output, graph.value_info) for v in values)
            for node in scope.nodes:
                self._taken.update([*node.input, *node.output, node.name])

    def fresh(self, wanted: str) -> str:
        """`wanted`, with a number behind it if it is taken."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}.{count}"
        self._taken.add(name)
        return name

    def constant(self, value: np.ndarray, wanted: str) -> str:
        """Name of an initializer of this value."""
        key = (value.tobytes(), value.dtype.name, value.shape)
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(value, self.fresh(wanted))
        return str(self.constants[key].name)


@dataclass
class Emitter:
    """Collects the nodes of one graph as they will be, in order.

    Parameters
    ----------
    names : Names
    integer : bool
        Whether `MatMulNBits` quantizes activations.
    """

    names: Names
    integer: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], like: onnx.NodeProto, *, result: str = "", **attributes: Any) -> str:
        """Add a node in the place of `like`; its output is called `result`, or gets a fresh name."""
        output = result or self.names.fresh(f"{like.output[0]}.{op}")
        domain = MICROSOFT if op in (Kind.MATMUL_NBITS, Kind.GATHER) else ""
        name = self.names.fresh(f"{like.name or like.output[0]}.{op}")
        self.nodes.append(helper.make_node(op, inputs, [output], name, domain=domain, **attributes))
        return output


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _stored(site: Site) -> list[str]:
    """Scale and, where there is one, zero point."""
    return [site.parts[suffix] for suffix in ("scale", "zero_point") if suffix in site.parts]


def _linear(emit: Emitter, site: Site) -> None:
    """MatMul or Gemm: ``alpha * x @ w + beta * c``, the product by `MatMulNBits` or in integers."""
    node = site.use.node
    product = _integer_product if site.layout.form.integer else _nbits_product
    if node.op_type == "MatMul":
        product(emit, site, node.input[0], node.output[0])
        return
    attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0} | _attributes(node)
    dtype = helper.tensor_dtype_to_np_dtype(site.layout.form.data_type)
    bias = node.input[2] if len(node.input) > 2 and attributes["beta"] != 0.0 else ""
    scaled = attributes["alpha"] != 1.0
    x = emit.add("Transpose", [node.input[0]], node, perm=[1, 0]) if attributes["transA"] else node.input[0]
    y = product(emit, site, x, "" if scaled or bias else node.output[0])
    if scaled:
        factor = emit.names.constant(np.array(attributes["alpha"], dtype), f"{node.output[0]}.alpha")
        y = emit.add("Mul", [y, factor], node, result="" if bias else node.output[0])
    if bias and attributes["beta"] != 1.0:
        factor = emit.names.constant(np.array(attributes["beta"], dtype), f"{node.output[0]}.beta")
        bias = emit.add("Mul", [bias, factor], node)
    if bias:
        emit.add("Add", [y, bias], node, result=node.output[0])


def _nbits_product(emit: Emitter, site: Site, x: str, result: str) -> str:
    layout = site.layout
    sizes = {"K": layout.columns, "N": layout.rows, "bits": layout.spec.bits, "block_size": layout.group_size}
    level = {"accuracy_level": 4} if emit.integer else {}
    inputs = [x, site.parts["codes"], *_stored(site)]
    return emit.add(Kind.MATMUL_NBITS, inputs, site.use.node, result=result, **sizes, **level)


def _integer_product(emit: Emitter, site: Site, x: str, result: str) -> str:
    codes, scale, point = _quantized_input(emit, site, x)
    inputs = [codes, site.parts["codes"], point]
    if not site.layout.signed:
        inputs.append(_middle(emit, site))
    product = emit.add(Kind.MATMUL_INTEGER, inputs, site.use.node)
    return _scaled(emit, site, (product, scale), result)


def _conv_integer(emit: Emitter, site: Site) -> None:
    node = site.use.node
    codes, scale, point = _quantized_input(emit, site, node.input[0])
    inputs = [codes, site.parts["codes"], point, _middle(emit, site)]
    product = emit.add(Kind.CONV_INTEGER, inputs, node, **_attributes(node))
    bias = node.input[2] if len(node.input) > 2 else ""
    y = _scaled(emit, site, (product, scale), "" if bias else node.output[0])
    if bias:
        shape = np.array([-1, *[1] * (len(site.layout.shape) - 2)], np.int64)
        column = emit.add("Reshape", [bias, emit.names.constant(shape, f"{node.output[0]}.shape")], node)
        emit.add("Add", [y, column], node, result=node.output[0])


def _middle(emit: Emitter, site: Site) -> str:
    """The unsigned code of zero."""
    middle = 1 << (site.layout.spec.bits - 1)
    return emit.names.constant(np.array(middle, np.uint8), f"zero_point.{middle}")


def _quantized_input(emit: Emitter, site: Site, x: str) -> tuple[str, ...]:
    """Codes, scale and zero point of activations, which all readers of them share."""
    if x not in emit.shared:
        floats = x
        if site.layout.form.data_type != _FLOAT:
            floats = emit.add("Cast", [x], site.use.node, to=_FLOAT)
        outputs = tuple(emit.names.fresh(f"{x}.{what}") for what in ("codes", "scale", "zero_point"))
        name = emit.names.fresh(f"{x}.DynamicQuantizeLinear")
        emit.nodes.append(helper.make_node("DynamicQuantizeLinear", [floats], outputs, name))
        emit.shared[x] = outputs
    return emit.shared[x]


def _scaled(emit: Emitter, site: Site, product: tuple[str, str], result: str) -> str:
    """Sums of products of integers as floats: times the scale of the activations, times those of the weight."""
    node, wanted = site.use.node, site.layout.form.data_type
    sums, scale = product
    floats = emit.add("Cast", [sums], node, to=_FLOAT)
    both = emit.add("Mul", [scale, site.parts["scale"]], node)
    y = emit.add("Mul", [floats, both], node, result=result if wanted == _FLOAT else "")
    return y if wanted == _FLOAT else emit.add("Cast", [y], node, result=result, to=wanted)


def _gather(emit: Emitter, site: Site) -> None:
    node = site.use.node
    inputs = [site.parts["codes"], node.input[1], *_stored(site)]
    sizes = {"bits": site.layout.spec.bits, "block_size": site.layout.group_size}
    emit.add(Kind.GATHER, inputs, node, result=node.output[0], gather_axis=0, quantize_axis=1, **sizes)


def _dequantized_conv(emit: Emitter, site: Site) -> None:
    node, codes = site.use.node, site.parts["codes"]
    if codes not in emit.shared:
        rows = emit.add(Kind.DEQUANTIZE, [codes, *_stored(site)], node, axis=1, block_size=site.layout.group_size)
        shape = np.array(site.layout.shape, np.int64)
        wanted = f"{site.use.constant.holder.name}.shape"
        emit.shared[codes] = (emit.add("Reshape", [rows, emit.names.constant(shape, wanted)], node),)
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[1] = emit.shared[codes][0]
    emit.nodes.append(new)


BUILDERS: Final[dict[Kind, Callable[[Emitter, Site], None]]] = {
    Kind.MATMUL_NBITS: _linear,
    Kind.MATMUL_INTEGER: _linear,
    Kind.CONV_INTEGER: _conv_integer,
    Kind.GATHER: _gather,
    Kind.DEQUANTIZE: _dequantized_conv,
}
"""What adds the nodes that read a weight, by operator."""
