"""Writing a planned model: its data tensor by tensor, then its structure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import onnx

import llmq
from llmq.errors import InputError, UnsupportedError
from llmq.onnx.external import point_to
from llmq.onnx.graph_file import LARGE, LARGEST_MESSAGE
from llmq.onnx.graph_rewrite import rewrite
from llmq.onnx.opsets import least_ir_version, opset_of
from llmq.onnx.output_files import DataFile, Staged, check_room, data_path
from llmq.onnx.planned_model import stored_tensors
from llmq.onnx.quantize_run import Destination, SquaredError, copy_tensor, nonfinite_weights, quantize_weight

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.onnx.graph_scopes import Holder
    from llmq.onnx.initializers import StoredTensor, TensorFiles
    from llmq.onnx.planned_model import PlannedModel
    from llmq.onnx.quantize_forms import Form, Layout, Part
    from llmq.onnx.quantize_plan import WeightPlan, Wishes
    from llmq.system.progress import Progress

__all__ = ["write_model"]

_PAGE: Final = 4096
_LINE: Final = 64
_PAGED: Final = 1 << 16
"""Bytes from which on a tensor begins at a page, so that it can be mapped."""


class _Weight(NamedTuple):
    """A weight to quantize in one form."""

    weight: WeightPlan
    layout: Layout
    stored: StoredTensor
    to: dict[str, Destination]


class _Jobs:
    """Tensors of the output and where their data goes, in order."""

    def __init__(self, location: str) -> None:
        self.size = 0
        self.weights: list[_Weight] = []
        self.copies: list[tuple[StoredTensor, Destination]] = []
        self._location = location

    @property
    def source_bytes(self) -> int:
        """Bytes to be read."""
        return sum(job.stored.nbytes for job in self.weights) + sum(stored.nbytes for stored, _ in self.copies)

    def place(self, tensor: onnx.TensorProto, nbytes: int) -> Destination:
        """Give a tensor of the output its place."""
        if nbytes < LARGE:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            return Destination(tensor, nbytes, None)
        step = _PAGE if nbytes >= _PAGED else _LINE
        offset = -(-self.size // step) * step
        self.size = offset + nbytes
        point_to(tensor, self._location, offset, nbytes)
        return Destination(tensor, nbytes, offset)


def write_model(
    planned: PlannedModel,
    output: Path,
    wishes: Wishes,
    files: TensorFiles,
    *,
    progress: Progress,
    overwrite: bool,
) -> dict[Holder, SquaredError]:
    """Write a model and its data; nothing appears before all of it is written.

    The structure in `planned` is changed into that of the output.

    Returns
    -------
    dict
        The error of each quantized weight.

    Raises
    ------
    InputError
        A weight with NaN or infinity, or a source that cannot be read or changed meanwhile.
    ResourceError
        No room.
    """
    proto, location = planned.file.proto, data_path(output).name
    jobs = _jobs(planned, location, wishes, files)
    _tell(proto, wishes)
    errors: dict[Holder, SquaredError] = {}
    with Staged(output, overwrite=overwrite) as staged:
        check_room(output.parent, jobs.size)
        with DataFile(staged.path(location), jobs.size) as out:
            progress.start("quantizing", jobs.source_bytes)
            for job in jobs.weights:
                errors.setdefault(job.weight.holder, _quantize(job, wishes.recipe.method, files, out))
                progress.advance(job.stored.nbytes)
            for tensor, to in jobs.copies:
                copy_tensor(tensor, files, to, out)
                progress.advance(tensor.nbytes)
        files.check_unchanged()
        if proto.ByteSize() > LARGEST_MESSAGE:
            raise UnsupportedError("its structure is larger than protobuf can hold", file=planned.file.path.name)
        staged.write_graph(proto.SerializeToString(deterministic=True))
        staged.publish()
        progress.finish()
    return errors


def _jobs(planned: PlannedModel, location: str, wishes: Wishes, files: TensorFiles) -> _Jobs:
    """Rewrite the graph, add the tensors that hold quantized weights, and give every large tensor a place."""
    proto, plan = planned.file.proto, planned.plan
    sources = {weight.holder: planned.place(weight.holder, files) for weight in plan.quantized}
    names = rewrite(proto, planned.scopes, plan, integer=wishes.integer)
    jobs = _Jobs(location)
    kept = stored_tensors(planned.file, files)
    places: dict[tuple[Holder, Form], dict[str, Destination]] = {}
    for weight in plan.quantized:
        for form, layout in weight.layouts.items():
            twin = weight.twin(form)
            if twin is not None:
                codes = _add(proto, names[weight.holder, form]["codes"], layout.parts()[0])
                codes.data_location = onnx.TensorProto.EXTERNAL
                codes.external_data.extend(places[weight.holder, twin]["codes"].tensor.external_data)
                continue
            to = {
                part.suffix: jobs.place(_add(proto, names[weight.holder, form][part.suffix], part), part.nbytes)
                for part in layout.parts()
            }
            places[weight.holder, form] = to
            jobs.weights.append(_Weight(weight, layout, sources[weight.holder], to))
    for tensor, stored in kept:
        if stored.location is not None:
            jobs.copies.append((stored, jobs.place(tensor, stored.nbytes)))
    return jobs


def _add(proto: onnx.ModelProto, name: str, part: Part) -> onnx.TensorProto:
    tensor: onnx.TensorProto = proto.graph.initializer.add(name=name, data_type=part.data_type, dims=part.dims)
    return tensor


def _quantize(job: _Weight, method: str, files: TensorFiles, out: DataFile) -> SquaredError:
    try:
        sums = quantize_weight((job.stored, job.layout), method, files, lambda w: _put(job.to[w.suffix], w, out))
    except FloatingPointError:
        nan, infinite = nonfinite_weights(job.stored, job.layout, files)
        raise InputError(
            "weight is not finite",
            file=files.paths[0].name,
            tensor=job.stored.name,
            found=f"{nan} NaN and {infinite} infinite of {job.stored.elements} values",
            hint="--nonfinite keep leaves such tensors as they are",
        ) from None
    for to in job.to.values():
        to.finish()
    return sums


def _put(to: Destination, write: Any, out: DataFile) -> None:
    offset, data, stride = write.offset, write.data, write.stride
    if stride == data.shape[1]:
        to.write(out, offset, data.reshape(-1))
        return
    for i, row in enumerate(data):
        to.write(out, offset + i * stride, row)


def _tell(proto: onnx.ModelProto, wishes: Wishes) -> None:
    """Say in the model's metadata what was done, and name the version of the format that it needs."""
    proto.ir_version = max(proto.ir_version, least_ir_version(opset_of(proto)))
    entry = next((e for e in proto.metadata_props if e.key == "llmq"), None) or proto.metadata_props.add(key="llmq")
    entry.value = json.dumps({"version": llmq.__version__} | wishes.to_json(), sort_keys=True)
