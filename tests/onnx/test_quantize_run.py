"""Weights in strips: the same bytes however they are cut, and from wherever they are stored."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import llmq
import llmq.onnx.quantize_run
from llmq.onnx import quantize_model


@pytest.fixture
def mixed(write_onnx, tmp_path):
    """A product by columns, one by rows, a table and a convolution, with external data."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "columns"], ["a"]),
        helper.make_node("Gemm", ["a", "rows"], ["b"], transB=1),
        helper.make_node("Gather", ["table", "i"], ["c"]),
        helper.make_node("Conv", ["image", "filters"], ["d"]),
    ]
    shapes = {"columns": (100, 90), "rows": (77, 90), "table": (99, 64), "filters": (33, 15, 3, 3)}
    return write_onnx(
        tmp_path / "m.onnx", nodes, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
        {"x": (np.float32, [2, 100]), "i": (np.int64, [3]), "image": (np.float32, [1, 15, 5, 5])},
        {"b": (np.float32, [2, 77]), "c": (np.float32, [3, 64]), "d": (np.float32, [1, 33, 3, 3])},
        external="m.bin", opset=21, ir=10,
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [
        {"bits": 4, "embeddings": 4, "group_size": 16},
        {"bits": 2, "embeddings": 2, "symmetric": False},
        {"bits": 8, "embeddings": 8, "activations": "int8"},
        {"bits": 7, "activations": "int8"},
    ],
)
def test_strips_of_any_size_give_the_same_bytes(mixed, tmp_path, monkeypatch, flags):
    made = []
    for elements in (1 << 21, 4000, 1):
        monkeypatch.setattr(llmq.onnx.quantize_run, "STRIP_ELEMENTS", elements)
        report = quantize_model(mixed, tmp_path / "out.onnx", overwrite=True, **flags)
        made.append([(tmp_path / name).read_bytes() for name in ("out.onnx", "out.onnx.data")])
        assert len(report.plan.quantized) == 3 + ("embeddings" in flags)
    assert made[0] == made[1] == made[2]


def test_copies_of_any_size_are_cut_into_blocks(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(llmq.onnx.quantize_run, "_BLOCK", 1000)
    quantize_model(mixed, tmp_path / "out.onnx", ignore=["table"])
    before, after = (
        next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == "table")
        for path in (mixed, tmp_path / "out.onnx")
    )
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("raw", [True, False])
def test_data_in_fields_of_their_own_is_read_too(write_onnx, tmp_path, dtype, raw):
    weight = np.random.default_rng(1).standard_normal((64, 80)).astype(dtype)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = weight.tobytes() if raw else weight.astype(np.float32).ravel().tolist()
    tensor = helper.make_tensor("w", number, weight.shape, values, raw=raw)
    assert tensor.HasField("raw_data") == raw
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": tensor},
        {"x": (dtype, [2, 80])}, {"y": (dtype, [2, 64])},
    )  # fmt: skip
    quantize_model(path, tmp_path / "out.onnx", bits=8, group_size=16)
    tensors = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    ours = llmq.quantize_tensor(weight, 8, 16)
    assert tensors["w.codes"].raw_data == ours.packed.tobytes()
    assert (tensors["w.scale"].data_type, tensors["w.scale"].raw_data) == (number, ours.scale.tobytes())


CONVOLUTIONS = {
    "1-D": ((64, 32, 3), (2, 32, 20), {"pads": [1, 1]}),
    "3-D": ((32, 8, 3, 3, 3), (1, 8, 6, 6, 6), {}),
    "dilated": ((32, 16, 3, 3), (1, 16, 9, 9), {"dilations": [2, 2], "strides": [2, 2]}),
    "grouped": ((64, 16, 3, 3), (1, 64, 8, 8), {"group": 4}),
    "padded": ((32, 16, 3, 3), (1, 16, 9, 9), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("bias", ["none", "constant", "input"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_of_all_kinds(write_onnx, run, tmp_path, case, bias, activations):
    shape, image, attributes = CONVOLUTIONS[case]
    rng = np.random.default_rng(2)
    x, c = rng.standard_normal(image).astype(np.float32), rng.standard_normal(shape[0]).astype(np.float32)
    weights, inputs, feeds = {"w": rng.standard_normal(shape).astype(np.float32)}, {"x": (np.float32, image)}, {"x": x}
    if bias == "constant":
        weights["c"] = c
    elif bias == "input":
        inputs["c"], feeds["c"] = (np.float32, c.shape), c
    node = helper.make_node("Conv", ["x", "w"] + ["c"] * (bias != "none"), ["y"], **attributes)
    rank = len(image)
    path = write_onnx(tmp_path / "m.onnx", [node], weights, inputs, {"y": (np.float32, [None] * rank)}, opset=21, ir=10)
    quantize_model(path, tmp_path / "out.onnx", bits=8, activations=activations)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    wanted, found = run(path, **feeds)[0], run(tmp_path / "out.onnx", **feeds)[0]
    assert found.shape == wanted.shape
    assert 0 < ((found - wanted) ** 2).sum() < (3e-4 if activations == "int8" else 5e-5) * (wanted**2).sum()


def test_a_filter_of_two_convolutions_is_decoded_once(write_onnx, run, tmp_path):
    rng = np.random.default_rng(3)
    nodes = [helper.make_node("Conv", ["x", "w"], [f"y{i}"], strides=[i + 1, i + 1]) for i in range(2)]
    path = write_onnx(
        tmp_path / "m.onnx", nodes, {"w": rng.standard_normal((32, 16, 3, 3)).astype(np.float32)},
        {"x": (np.float32, [1, 16, 7, 7])}, {f"y{i}": (np.float32, [1, 32, None, None]) for i in range(2)},
        opset=21, ir=10,
    )  # fmt: skip
    quantize_model(path, tmp_path / "out.onnx", bits=4)
    kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds == ["DequantizeLinear", "Reshape", "Conv", "Conv"]
    assert len(run(tmp_path / "out.onnx", x=np.ones((1, 16, 7, 7), np.float32))) == 2


def test_a_weight_cast_to_half_precision_may_overflow_and_is_refused(write_onnx, tmp_path):
    weight = np.full((64, 64), 1e5, np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x", "h"], ["y"]),
    ]
    path = write_onnx(
        tmp_path / "m.onnx", nodes, {"w": weight}, {"x": (np.float16, [2, 64])}, {"y": (np.float16, [2, 64])}
    )
    with pytest.raises(llmq.LlmqError, match=r"w: weight is not finite .*0 NaN and 4096 infinite"):
        quantize_model(path, tmp_path / "out.onnx")
