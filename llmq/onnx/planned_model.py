"""A model with what is to become of it: read, checked, planned, and its operators raised where that needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmq.onnx.graph_check import check_graph, every_tensor
from llmq.onnx.graph_file import read_graph
from llmq.onnx.graph_raise import CannotRaiseError, raise_opset
from llmq.onnx.graph_scopes import scopes_of
from llmq.onnx.opsets import opset_of
from llmq.onnx.quantize_plan import Limit, plan_weights, refuse_empty
from llmq.onnx.quantize_run import nonfinite_weights

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from llmq.onnx.graph_file import GraphFile
    from llmq.onnx.graph_scopes import Holder, Scope
    from llmq.onnx.initializers import StoredTensor, TensorFiles
    from llmq.onnx.quantize_plan import GraphPlan, Wishes
    from llmq.system.progress import Progress

__all__ = ["PlannedModel", "keep_nonfinite", "plan_model", "read_model", "stored_tensors"]

_ANY: Final = 1 << 30

_WITHOUT_INPUTS: Final = 4
"""The first version of the format that has weights which are no inputs."""


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """A model's structure and what becomes of its weights.

    Parameters
    ----------
    file : GraphFile
        With operators raised where the plan needs it.
    scopes : list of Scope
        Of its graph and the graphs nested in it, the outer first.
    plan : GraphPlan
    """

    file: GraphFile
    scopes: list[Scope]
    plan: GraphPlan

    def place(self, holder: Holder, files: TensorFiles) -> StoredTensor:
        """Where a weight is stored."""
        outermost = holder.node is None and holder.scope is self.scopes[0]
        region = self.file.regions.get(holder.name) if outermost else None
        return files.stored(holder.tensor, holder.name, region)


def read_model(path: Path) -> GraphFile:
    """Read and check a model's structure, raised to version 4 of the format. Raises InputError or UnsupportedError."""
    file = read_graph(path)
    check_graph(file)
    if file.proto.ir_version < _WITHOUT_INPUTS:
        _free_weights(file.proto)
    return file


def _free_weights(proto: onnx.ModelProto) -> None:
    """Raise a model to the version in which only what callers may replace is an input: before it, all weights were."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = proto.graph.input
    for i in reversed(range(len(inputs))):
        if inputs[i].name in weights:
            del inputs[i]
    proto.ir_version = _WITHOUT_INPUTS


def stored_tensors(file: GraphFile, files: TensorFiles) -> list[tuple[onnx.TensorProto, StoredTensor]]:
    """All tensors of a model with their places, each checked. Raises InputError."""
    found = []
    count = len(file.proto.graph.initializer)
    for i, tensor in enumerate(every_tensor(file.proto)):
        region = file.regions.get(tensor.name) if i < count else None
        found.append((tensor, files.stored(tensor, tensor.name, region)))
    return found


def plan_model(file: GraphFile, wishes: Wishes) -> PlannedModel:
    """Decide on every weight, and raise the operators if what they become needs newer ones and it can be done.

    Raises
    ------
    UsageError, UnsupportedError
        Wishes that no operator fulfils, or nothing to quantize.
    """
    planned = _planned(file, wishes, Limit(_ANY))
    opset = opset_of(file.proto)
    if planned.plan.opset > opset:
        try:
            planned = _planned(raise_opset(file, planned.plan.opset), wishes, Limit(_ANY))
        except CannotRaiseError as error:
            planned = _planned(file, wishes, Limit(opset, f", this model has {opset}: {error}"))
    refuse_empty(planned.plan, file.path.name)
    return planned


def _planned(file: GraphFile, wishes: Wishes, limit: Limit) -> PlannedModel:
    scopes = list(scopes_of(file.proto.graph))
    return PlannedModel(file, scopes, plan_weights(scopes, wishes, limit))


def keep_nonfinite(planned: PlannedModel, files: TensorFiles, wishes: Wishes, progress: Progress) -> Wishes:
    """Look through the weights to be quantized, and wish those kept that hold NaN or infinity."""
    weights = planned.plan.quantized
    progress.start("looking for NaN and infinity", sum(weight.source_bytes for weight in weights))
    keep = set(wishes.keep)
    for weight in weights:
        tensor = planned.place(weight.holder, files)
        if any(any(nonfinite_weights(tensor, layout, files)) for layout in weight.layouts.values()):
            keep.add(weight.holder.name)
        progress.advance(weight.source_bytes)
    progress.finish()
    return replace(wishes, keep=frozenset(keep))
