"""A graph with its quantized weights' readers replaced; every output keeps its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import helper

from llmq.onnx.graph_nodes import BUILDERS, Emitter, Names, Site
from llmq.onnx.opsets import MICROSOFT

if TYPE_CHECKING:
    import onnx

    from llmq.onnx.graph_scopes import Holder, Scope
    from llmq.onnx.quantize_forms import Form
    from llmq.onnx.quantize_plan import GraphPlan

__all__ = ["PartNames", "rewrite"]

PartNames = dict[tuple["Holder", "Form"], dict[str, str]]
"""Names of the tensors that hold a weight in a form, by suffix."""


def rewrite(proto: onnx.ModelProto, scopes: list[Scope], plan: GraphPlan, *, integer: bool) -> PartNames:
    """Replace, in place, the nodes that read quantized weights, and remove those weights.

    The tensors that the new nodes read are still to be added.

    Parameters
    ----------
    proto : onnx.ModelProto
    scopes : list of Scope
        Of `proto`, the outer before the inner.
    plan : GraphPlan
    integer : bool
        Whether `MatMulNBits` quantizes activations.
    """
    names = Names(scopes)
    parts: PartNames = {}
    sites: dict[int, Site] = {}
    for weight in plan.quantized:
        for form, layout in weight.layouts.items():
            stem = weight.holder.name if len(weight.forms) == 1 else f"{weight.holder.name}.{form.kind}"
            twin = weight.twin(form)
            same = {} if twin is None else parts[weight.holder, twin]
            parts[weight.holder, form] = {
                p.suffix: same[p.suffix]
                if p.suffix in same and p.suffix != "codes"
                else names.fresh(f"{stem}.{p.suffix}")
                for p in layout.parts()
            }
            for use in weight.forms[form]:
                sites[id(use.node)] = Site(use, layout, parts[weight.holder, form])
    gone = {weight.holder for weight in plan.quantized}
    for scope in reversed(scopes):  # the inner first, for the outer copies them
        _rewrite_scope(scope, Emitter(names, integer), sites, gone)
    proto.graph.initializer.extend(names.constants.values())
    used = any(node.domain == MICROSOFT for scope in scopes for node in scope.graph.node)
    if used and all(found.domain != MICROSOFT for found in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return parts


def _rewrite_scope(scope: Scope, emit: Emitter, sites: dict[int, Site], gone: set[Holder]) -> None:
    dropped = {holder.name for holder in gone if holder.scope is scope}
    for node in scope.nodes:
        site, passed = sites.get(id(node)), scope.passes_on(node)
        if site is not None:
            first = len(emit.nodes)
            BUILDERS[site.layout.form.kind](emit, site)
            _keep_documentation(node, emit.nodes[first:])
        elif passed is not None and passed.holder in gone:
            dropped.add(node.output[0])
        else:
            emit.nodes.append(node)
    graph = scope.graph
    nodes = [_copy(node) for node in emit.nodes]
    initializers = [_copy(tensor) for tensor in graph.initializer if tensor.name not in dropped]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    for values in (graph.value_info, graph.input):
        for i in reversed(range(len(values))):
            if values[i].name in dropped:
                del values[i]


def _copy(message: onnx.NodeProto | onnx.TensorProto) -> onnx.NodeProto | onnx.TensorProto:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _keep_documentation(node: onnx.NodeProto, made: list[onnx.NodeProto]) -> None:
    """Hand the name of a node, and what it says of its origin, on to the last of those that replace it."""
    del made[-1].metadata_props[:]
    made[-1].metadata_props.extend(node.metadata_props)
    made[-1].doc_string = node.doc_string
    if node.name:
        made[-1].name = node.name
