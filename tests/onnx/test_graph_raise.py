"""Raising operators: the same numbers, and everything that the converter does not know put back."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from llmq.onnx import quantize_model
from llmq.onnx.graph_file import read_graph
from llmq.onnx.graph_raise import CannotRaiseError, raise_opset


@pytest.fixture
def old(write_onnx, tmp_path):
    """Operators of version 13 that later versions changed: the axes of ReduceMean, the sizes of Split."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1], doc_string="why"),
        helper.make_node("ReduceMean", ["a"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Split", ["m"], ["y", "z"], axis=1),
    ]
    nodes[0].metadata_props.add(key="from", value="here")
    return write_onnx(
        tmp_path / "m.onnx", nodes, {"w": rng.standard_normal((32, 16, 3, 3)).astype(np.float32)},
        {"x": (np.float32, [1, 16, 8, 8])}, {"y": (np.float32, [1, 16]), "z": (np.float32, [1, 16])},
        opset=13, ir=7, external="m.bin", doc_string="graph",
    )  # fmt: skip


def test_old_convolutions_are_quantized_by_raising_the_operators(old, run, tmp_path):
    report = quantize_model(old, tmp_path / "out.onnx", bits=8)
    assert report.opsets == (13, 21)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32)
    for found, wanted in zip(run(tmp_path / "out.onnx", x=x), run(old, x=x), strict=True):
        assert ((found - wanted) ** 2).sum() < 1e-4 * (wanted**2).sum()
    model = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    assert (conv.name, conv.doc_string, conv.metadata_props[0].value) == ("conv", "why", "here")
    assert (model.graph.doc_string, model.producer_name, model.ir_version) == ("graph", "by hand", 10)


def test_integers_need_operators_of_version_11_only(write_onnx, run, tmp_path):
    weight = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight},
        {"x": (np.float32, [2, 64])}, {"y": (np.float32, [2, 64])}, opset=9, ir=4,
    )  # fmt: skip
    assert quantize_model(path, tmp_path / "out.onnx", activations="int8").opsets == (9, 11)
    x = np.random.default_rng(3).standard_normal((2, 64)).astype(np.float32)
    wanted = x @ weight
    assert ((run(tmp_path / "out.onnx", x=x)[0] - wanted) ** 2).sum() < 1e-3 * (wanted**2).sum()


def test_data_of_constants_outside_the_file_is_found_again(write_onnx, run, tmp_path):
    rng = np.random.default_rng(4)
    held = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("w", (32, 16, 3, 3)), ("c", (32, 30, 30)))}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(a)) for n, a in held.items()]
    nodes += [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])]
    values = {"x": (np.float32, [1, 16, 32, 32])}, {"y": (np.float32, [1, 32, 30, 30])}
    path = write_onnx(tmp_path / "m.onnx", nodes, {}, *values)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="m.bin", convert_attribute=True)
    # Longer than the tensors, so that reading them from the model itself would succeed.
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "x" * 200_000
    path.write_bytes(model.SerializeToString())
    assert quantize_model(path, tmp_path / "out.onnx", bits=8).opsets == (18, 21)
    x = rng.standard_normal((1, 16, 32, 32)).astype(np.float32)
    found, wanted = run(tmp_path / "out.onnx", x=x)[0], run(path, x=x)[0]
    assert ((found - wanted) ** 2).sum() < 1e-4 * (wanted**2).sum()


@pytest.mark.parametrize("options", [{"bits": 8}, {"activations": "int8"}])
def test_weights_that_had_to_be_inputs_are_raised_with_the_operators(write_onnx, run, tmp_path, options):
    rng = np.random.default_rng(5)
    weights = {"w": rng.standard_normal((64, 64)).astype(np.float32), "b": np.ones(64, np.float32)}
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], weights,
        {"x": (np.float32, [2, 64]), "w": (np.float32, [64, 64]), "b": (np.float32, [64])},
        {"y": (np.float32, [2, 64])}, opset=7, ir=3,
    )  # fmt: skip
    quantize_model(path, tmp_path / "out.onnx", **options)
    x = rng.standard_normal((2, 64)).astype(np.float32)
    found, wanted = run(tmp_path / "out.onnx", x=x)[0], run(path, x=x)[0]
    assert ((found - wanted) ** 2).sum() < 1e-3 * (wanted**2).sum()
    model = onnx.load(tmp_path / "out.onnx")
    assert [value.name for value in model.graph.input] == ["x"]
    assert model.ir_version >= 4


def test_what_the_converter_cannot_do_is_told(old):
    file = read_graph(old)
    with pytest.raises(CannotRaiseError, match="no such operators"):
        raise_opset(file, 999)
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    proto.functions.add(name="f", domain="d")
    with pytest.raises(CannotRaiseError, match="functions cannot be raised"):
        raise_opset(replace(file, proto=proto), 21)
    assert file.proto.opset_import[0].version == 13
