"""Integer networks as ONNX models.

    network = calibrate(layers, batches)
    export_integer(network, "network.onnx", input_shape=(3, 32, 32))

What comes out agrees with the network: docs/onnx.md says to which digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from onnx import ModelProto, TensorProto, checker, helper, shape_inference

import llmq
from llmq import integer
from llmq.errors import UnsupportedError, UsageError
from llmq.onnx.graph_file import LARGEST_MESSAGE
from llmq.onnx.integer_activations import floats_of
from llmq.onnx.integer_graph import Graph, Style, Value
from llmq.onnx.integer_inputs import input_of
from llmq.onnx.integer_layers import add_layer
from llmq.onnx.opsets import FOUR_BIT_OPSET, TWO_BIT_OPSET, least_ir_version
from llmq.onnx.values import described
from llmq.system.files import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from llmq.integer import Layer

__all__ = ["ExportedNetwork", "export_integer", "export_saved", "integer_model"]

_OPSETS: Final = (FOUR_BIT_OPSET, TWO_BIT_OPSET)
"""Versions of the operators that hold what is needed, and that onnxruntime runs."""

_LARGEST: Final = LARGEST_MESSAGE - (1 << 20)
"""Bytes of tensors that go into one file, with some left for the nodes."""


@dataclass(frozen=True)
class ExportedNetwork:
    """What was written.

    Parameters
    ----------
    output : Path
    nbytes : int
        Of the file.
    style : {"qdq", "qoperator"}
    opset : int
        Version of the operators.
    inputs, outputs : tuple of dict
        `name`, `dtype` and `shape` of each; a length that varies is a word.
    """

    output: Path
    nbytes: int
    style: Style
    opset: int
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` shows."""
        return {
            "output": str(self.output),
            "files": [{"name": self.output.name, "bytes": self.nbytes}],
            "style": self.style,
            "opset": self.opset,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }


def integer_model(
    network: Layer,
    *,
    input_shape: Sequence[int | None] | None = None,
    style: Style = "qdq",
    signed: bool = False,
    opset: int | None = None,
) -> ModelProto:
    """Make the ONNX model of an integer network; see `export_integer`."""
    if style not in get_args(Style):
        raise UsageError("unknown style", expected=" or ".join(get_args(Style)), found=repr(style))
    if opset is not None and not _OPSETS[0] <= opset <= _OPSETS[1]:
        raise UsageError("opset out of range", expected=f"{_OPSETS[0]} to {_OPSETS[1]}", found=opset)
    shape, dtype = input_of(network, input_shape)
    graph = Graph(style, signed=signed, opset=opset)
    found = add_layer(graph, network, Value("input", len(shape) + 1))
    result = floats_of(graph, found, "output")
    if result == "input":
        result = graph.node("Identity", [result], "output")
    _rename(graph, result, "output")
    axes = ["batch", *(f"axis_{i}" if size is None else int(size) for i, size in enumerate(shape, 1))]
    proto = helper.make_graph(
        graph.nodes,
        "integer_network",
        [helper.make_tensor_value_info("input", helper.np_dtype_to_tensor_dtype(dtype), axes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        graph.initializers,
    )
    return _checked(_model(proto, graph))


def export_integer(
    network: Layer,
    output: str | os.PathLike[str],
    *,
    input_shape: Sequence[int | None] | None = None,
    style: Style = "qdq",
    signed: bool = False,
    opset: int | None = None,
) -> ExportedNetwork:
    """Write an integer network to an ONNX file, at once or not at all.

    The model takes `input`, float32 (batch, ...) or int64 indices (batch, ...) of an embedding, and gives `output`,
    float32; a network that ends in integers gives what they stand for.

    Parameters
    ----------
    network : Layer
        A layer of `llmq.integer`, most often a `Sequential`; layers that are not quantized stay float.
    output : path
        Replaced if it exists.
    input_shape : sequence of int or None, optional
        Of one item, without the batch; None leaves a size open. By default that of the first layer with a weight, with
        the sizes of images, sounds and texts left open.
    style : {"qdq", "qoperator"}
        Float operators between `QuantizeLinear` and `DequantizeLinear`, which runtimes turn into integer kernels where
        they have some; or operators on integers.
    signed : bool
        Whether codes of 8 bits are int8, as some accelerators ask for. By default they are uint8: products of these are
        what onnxruntime sums exactly on every CPU.
    opset : int, optional
        21 to 25. By default 21, or 25 if there are weights of at most 2 bits; below 25 these are stored in 4.

    Returns
    -------
    ExportedNetwork

    Raises
    ------
    UsageError
        An unknown style or opset, a shape that does not fit the network, or a folder that is not there.
    UnsupportedError
        A layer that has no ONNX form, or more than 2 GiB of weights.
    """
    path = Path(output)
    if not path.parent.is_dir():
        raise UsageError("no such folder", file=path.parent)
    model = integer_model(network, input_shape=input_shape, style=style, signed=signed, opset=opset)
    data = model.SerializeToString(deterministic=True)
    atomic_write(path, data)
    values = (tuple(described(value) for value in values) for values in (model.graph.input, model.graph.output))
    return ExportedNetwork(path, len(data), style, model.opset_import[0].version, *values)


def export_saved(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    input_shape: Sequence[int | None] | None = None,
    style: Style = "qdq",
    signed: bool = False,
    opset: int | None = None,
) -> ExportedNetwork:
    """Write what `llmq.integer.save` wrote to an ONNX file.

    Parameters
    ----------
    path : path
        A safetensors file.
    output, input_shape, style, signed, opset
        As for `export_integer`.

    Raises
    ------
    InputError
        A file that is missing, damaged, or holds no integer network.
    UsageError
        As for `export_integer`, and for an output that is `path`.
    UnsupportedError
        As for `export_integer`.
    """
    path, output = Path(path), Path(output)
    if output.exists() and output.samefile(path):
        raise UsageError("the output would replace the network itself", file=output, hint="choose another name")
    network = integer.load(path)
    return export_integer(network, output, input_shape=input_shape, style=style, signed=signed, opset=opset)


def _rename(graph: Graph, name: str, new: str) -> None:
    """Give a tensor another name."""
    for node in graph.nodes:
        for names in (node.input, node.output):
            for i, found in enumerate(names):
                if found == name:
                    names[i] = new


def _model(proto: Any, graph: Graph) -> ModelProto:
    model: ModelProto = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=least_ir_version(graph.opset),
        producer_name="llmq",
        producer_version=llmq.__version__,
        doc_string="An integer network, quantized by llmq",
    )
    helper.set_model_props(model, {"llmq.style": graph.style, "llmq.codes": str(graph.code_dtype)})
    return model


def _checked(model: ModelProto) -> ModelProto:
    """Infer the shapes of a model, and check it."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size > _LARGEST:
        raise UnsupportedError("weights of more than 2 GiB do not go into one ONNX file", found=f"{size:,} bytes")
    try:
        inferred: ModelProto = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        checker.check_model(inferred, full_check=True)
    except shape_inference.InferenceError as error:
        raise UsageError(f"input_shape does not fit the network: {error}") from error
    for i, axis in enumerate(dims := inferred.graph.output[0].type.tensor_type.shape.dim):
        # Sizes that no inference found get names of its own making.
        if not axis.dim_value and axis.dim_param not in ("batch", *(a.dim_param for a in _axes(inferred))):
            axis.dim_param = "batch" if i == 0 and len(dims) > 1 else f"output_{i}"
    return inferred


def _axes(model: ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim
