"""What is left alone, and the reason that is told."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmq.errors import UnsupportedError, UsageError
from llmq.onnx import quantize_model

FLOAT = np.float32


def normal(*shape, dtype=FLOAT):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


@pytest.fixture
def reasons(write_onnx, tmp_path):
    """Reasons by name for a graph beside a product whose weight `good` is quantized, and its nodes afterwards."""

    def plan(nodes, weights, *, inputs=None, outputs=None, model=None, flags=None, **options):
        product = helper.make_node("MatMul", ["x0", "good"], ["y0"], "good")
        path = write_onnx(
            tmp_path / "m.onnx", [product, *nodes], {"good": normal(64, 64)} | weights,
            {"x0": (FLOAT, [2, 64])} | (inputs or {}), {"y0": (FLOAT, [2, 64])} | (outputs or {}), **options,
        )  # fmt: skip
        if model is not None:
            proto = onnx.load(path)
            model(proto)
            path.write_bytes(proto.SerializeToString())
        report = quantize_model(path, tmp_path / "out.onnx", **(flags or {}))
        onnx.checker.check_model(str(tmp_path / "out.onnx"))
        found = {w.holder.name: w.reason for w in report.plan.weights}
        assert found.pop("good") == ""
        return found

    return plan


def test_small_weights_vectors_and_unread_ones_are_kept(reasons):
    found = reasons(
        [helper.make_node("Gemm", ["x", "small", "bias"], ["y"])],
        {"small": normal(63, 65), "bias": normal(65), "unread": normal(64, 64)},
        inputs={"x": (FLOAT, [2, 63])},
        outputs={"y": (FLOAT, [2, 65])},
    )
    assert found == {"small": "fewer than 4096 elements", "bias": "1-D", "unread": "read by nothing"}


def test_weights_that_callers_see_are_kept(reasons):
    nodes = [helper.make_node("MatMul", ["x0", n], [f"y_{n}"]) for n in ("given", "returned")]
    found = reasons(
        nodes,
        {"given": normal(64, 64), "returned": normal(64, 64)},
        inputs={"given": (FLOAT, [64, 64])},
        outputs={"returned": (FLOAT, [64, 64]), "y_given": (FLOAT, [2, 64]), "y_returned": (FLOAT, [2, 64])},
    )
    assert found == {"given": "an input too, so that callers may replace it", "returned": "an output of a graph"}


def test_other_readers_keep_a_weight(reasons):
    nodes = [
        helper.make_node("MatMul", ["x0", "shared"], ["a"]),
        helper.make_node("Add", ["shared", "shared"], ["b"]),
        helper.make_node("MatMul", ["left", "x1"], ["c"]),
        helper.make_node("MatMul", ["x2", "batched"], ["d"]),
        helper.make_node("Gather", ["columns", "i"], ["e"], axis=1),
        helper.make_node("ConvTranspose", ["x3", "deconv"], ["f"]),
    ]
    found = reasons(
        nodes,
        {
            "shared": normal(64, 64), "left": normal(64, 64), "batched": normal(2, 64, 64), "columns": normal(64, 64),
            "deconv": normal(16, 32, 3, 3), "i": np.array([1]),
        },
        inputs={"x1": (FLOAT, [64, 2]), "x2": (FLOAT, [2, 3, 64]), "x3": (FLOAT, [1, 16, 5, 5])},
        outputs={
            "a": (FLOAT, [2, 64]), "b": (FLOAT, [64, 64]), "c": (FLOAT, [64, 2]), "d": (FLOAT, [2, 3, 64]),
            "e": (FLOAT, [64, 1]), "f": (FLOAT, [1, 32, 7, 7]),
        },
        flags={"embeddings": 4},
    )  # fmt: skip
    assert found == {
        "shared": "read by Add",
        "left": "the left factor of MatMul",
        "batched": "3-D weight of MatMul",
        "columns": "Gather along columns",
        "deconv": "read by ConvTranspose",
    }


def test_custom_operators_and_functions_keep_theirs(reasons):
    def add_function(proto):
        body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
        imports = [helper.make_opsetid("", 18)]
        proto.functions.append(helper.make_function("mine", "Linear", ["a", "b"], ["c"], body, imports))
        proto.opset_import.extend([helper.make_opsetid("mine", 1), helper.make_opsetid("com.microsoft", 1)])

    nodes = [
        helper.make_node("Linear", ["x0", "called"], ["a"], domain="mine"),
        helper.make_node("FusedMatMul", ["x0", "fused"], ["b"], domain="com.microsoft"),
    ]
    found = reasons(
        nodes,
        {"called": normal(64, 64), "fused": normal(64, 64)},
        outputs={n: (FLOAT, [2, 64]) for n in "ab"},
        model=add_function,
    )
    assert found == {"called": "read by mine.Linear", "fused": "read by com.microsoft.FusedMatMul"}


def test_double_precision_is_kept_and_cast_down_it_is_not(reasons):
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["a"]),
        helper.make_node("Cast", ["cast"], ["narrow"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x0", "narrow"], ["b"]),
    ]
    found = reasons(
        nodes,
        {"wide": normal(64, 64, dtype=np.float64), "cast": normal(64, 64, dtype=np.float64)},
        inputs={"x": (np.float64, [2, 64])},
        outputs={"a": (np.float64, [2, 64]), "b": (FLOAT, [2, 64])},
    )
    assert found == {"wide": "float64", "cast": ""}


def test_tables_whose_rows_fill_no_bytes_are_kept(reasons):
    node = helper.make_node("Gather", ["odd", "i"], ["e"])
    weights = {"odd": normal(70, 63), "i": np.array([1])}
    options = {"outputs": {"e": (FLOAT, [1, 63])}}
    assert reasons([node], weights, flags={"embeddings": 4}, **options) == {
        "odd": "rows of 63 elements fill no whole bytes"
    }


def test_convolutions_of_nested_graphs_are_kept_where_the_operators_are_too_old(reasons):
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Conv", ["x", "conv"], ["r"])], "g", [], [out])
    found = reasons(
        [helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch)],
        {"conv": normal(32, 16, 3, 3)},
        inputs={"x": (FLOAT, [1, 16, 5, 5]), "flag": (np.bool_, [])},
        outputs={"z": (FLOAT, [1, 32, 3, 3])},
    )
    assert found == {
        "conv": "DequantizeLinear of 4 bits needs opset 21, this model has 18: "
        "a model with nested graphs or functions cannot be raised"
    }


def test_nothing_to_quantize_is_an_error_that_tells_why(write_onnx, tmp_path):
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], {"w": normal(64, 64)},
        {"x": (FLOAT, [64, 64])}, {"y": (FLOAT, [64, 64])},
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"m.onnx: nothing to quantize .found 1 read by Add"):
        quantize_model(path, tmp_path / "out.onnx")
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {},
        {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])},
    )  # fmt: skip
    with pytest.raises(UsageError, match="found no weights"):
        quantize_model(path, tmp_path / "out.onnx")


def test_integer_weights_of_other_tools_count_as_quantized(write_onnx, tmp_path):
    codes = numpy_helper.from_array(np.ones((64, 64), np.int8), "q")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = write_onnx(
        tmp_path / "m.onnx", nodes, {"q": codes, "s": np.array(0.1, FLOAT)},
        {"x": (FLOAT, [2, 64])}, {"y": (FLOAT, [2, 64])},
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"quantized already .*int8 already"):
        quantize_model(path, tmp_path / "out.onnx")


def test_groups_larger_than_products_of_two_bits_take_are_kept(reasons, run, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "long"], ["y"])]
    values = {"inputs": {"x": (FLOAT, [2, 300])}, "outputs": {"y": (FLOAT, [2, 64])}}
    flags = {"bits": 2, "group_size": 512}
    assert reasons(nodes, {"long": normal(300, 64)}, **values, flags=flags) == {
        "long": "MatMulNBits of 2 bits has groups of at most 256"
    }
    run(tmp_path / "out.onnx", x=normal(2, 300), x0=normal(2, 64))
    (tmp_path / "out.onnx").unlink()
    (tmp_path / "out.onnx.data").unlink()
    assert reasons(nodes, {"long": normal(300, 64)}, **values, flags=flags | {"group_size": 256}) == {"long": ""}
    run(tmp_path / "out.onnx", x=normal(2, 300), x0=normal(2, 64))
