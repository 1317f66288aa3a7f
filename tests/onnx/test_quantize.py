"""Models in, quantized models out, run by ONNX Runtime."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import llmq
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.onnx import quantize_model

NBITS, GATHER = "MatMulNBits", "GatherBlockQuantized"

# What docs/onnx.md says of the outputs of these models: squared error over squares.
BOUNDS = {
    "8 bits": ({"bits": 8}, 5e-5),
    "4 bits": ({"bits": 4}, 1e-2),
    "4 bits asymmetric": ({"bits": 4, "symmetric": False}, 1e-2),
    "2 bits": ({"bits": 2, "group_size": 16}, 0.2),
    "int8": ({"activations": "int8"}, 3e-4),
    "int8 of 7 bits": ({"activations": "int8", "bits": 7}, 5e-4),
    "4 bits int8": ({"bits": 4, "activations": "int8"}, 1e-2),
}


def nmse(found, wanted):
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


def ops(path):
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def decoded(path):
    """The weights that MatMulNBits nodes compute with, (N, K) by the name of the node, decoded bit by bit."""
    model = onnx.load(path)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != NBITS:
            continue
        size = {a.name: a.i for a in node.attribute}
        bits, rows = size["bits"], size["N"]
        stream = np.unpackbits(tensors[node.input[1]].reshape(rows, -1), axis=1, bitorder="little")
        codes = (stream.reshape(rows, -1, bits) << np.arange(bits)).sum(axis=2, dtype=np.float32)
        scale = tensors[node.input[2]].astype(np.float32)
        zero = np.full(scale.shape, 2 ** (bits - 1), np.float32)
        if len(node.input) > 3:
            points = np.unpackbits(tensors[node.input[3]], axis=1, bitorder="little")
            points = points[:, : points.shape[1] // bits * bits].reshape(rows, -1, bits) << np.arange(bits)
            zero = points.sum(axis=2, dtype=np.float32)[:, : scale.shape[1]]
        groups = codes.reshape(*scale.shape, size["block_size"])
        found[node.name] = ((groups - zero[..., None]) * scale[..., None]).reshape(rows, -1)[:, : size["K"]]
    return found


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
@pytest.mark.parametrize("name", ["cnn", "encoder"])
@pytest.mark.parametrize("case", BOUNDS)
def test_exported_models_run_within_the_documented_error(exported, run, tmp_path, name, exporter, case):
    path, x = exported[f"{name}-{exporter}"]
    flags, bound = BOUNDS[case]
    report = quantize_model(path, tmp_path / "out.onnx", **flags)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    wanted, found = run(path, x=x)[0], run(tmp_path / "out.onnx", x=x)[0]
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    error = nmse(found, wanted)
    assert 0 < error < bound
    kept = {w.holder.name: w.reason for w in report.plan.weights if w.spec is None and len(w.shape) > 1}
    assert set(kept.values()) <= {"fewer than 4096 elements", "embedding table"}
    before, after = (onnx.load(p, load_external_data=False).graph for p in (path, tmp_path / "out.onnx"))
    assert list(before.input) == list(after.input)
    assert list(before.output) == list(after.output)


@pytest.fixture
def linear(write_onnx, tmp_path):
    """`MatMul` of (96, 80) without anything else, and its weight."""
    weight = np.random.default_rng(1).standard_normal((96, 80)).astype(np.float32)
    path = write_onnx(
        tmp_path / "linear.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        {"w": weight},
        {"x": (np.float32, ["n", 96])},
        {"y": (np.float32, ["n", 80])},
    )
    return path, weight


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "percentile"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_are_those_of_quantize_tensor_and_the_graph_computes_with_them(
    linear, run, tmp_path, bits, symmetric, method
):
    path, weight = linear
    flags = {"bits": bits, "group_size": 32, "symmetric": symmetric, "method": method}
    report = quantize_model(path, tmp_path / "out.onnx", **flags)
    signed = method != "rtn"
    ours = llmq.quantize_tensor(np.ascontiguousarray(weight.T), signed_scale=signed, **flags).dequantize()
    theirs = decoded(tmp_path / "out.onnx")["product"]
    np.testing.assert_array_equal(theirs, ours)
    x = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    wanted = x @ ours.T
    (found,) = run(tmp_path / "out.onnx", x=x)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert report.nmse == pytest.approx(nmse(ours, weight.T), rel=1e-6)


def test_a_row_that_groups_do_not_divide_is_filled_up(write_onnx, run, tmp_path):
    weight = np.random.default_rng(3).standard_normal((100, 70)).astype(np.float32)
    path = write_onnx(
        tmp_path / "in.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        {"w": weight},
        {"x": (np.float32, ["n", 100])},
        {"y": (np.float32, ["n", 70])},
    )
    quantize_model(path, tmp_path / "out.onnx", bits=4, group_size=64)
    x = np.random.default_rng(4).standard_normal((3, 100)).astype(np.float32)
    wanted = x @ decoded(tmp_path / "out.onnx")["product"].T
    (found,) = run(tmp_path / "out.onnx", x=x)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert nmse(found, x @ weight) < 2e-2


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("bias", ["none", "row", "matrix", "input"])
def test_gemm_keeps_its_factors_biases_and_transpositions(
    write_onnx, run, tmp_path, activations, trans_a, trans_b, bias
):
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((64, 72) if trans_b else (72, 64)).astype(np.float32)
    biases = {"row": (64,), "matrix": (3, 64), "input": (1, 64)}
    weights = {"w": weight}
    inputs = {"x": (np.float32, [72, 3] if trans_a else [3, 72])}
    feeds = {"x": rng.standard_normal(inputs["x"][1]).astype(np.float32)}
    if bias != "none":
        c = rng.standard_normal(biases[bias]).astype(np.float32)
        if bias == "input":
            inputs["c"] = (np.float32, [1, 64])
            feeds["c"] = c
        else:
            weights["c"] = c
    gemm = helper.make_node(
        "Gemm", ["x", "w"] + ["c"] * (bias != "none"), ["y"], transA=trans_a, transB=trans_b, alpha=0.5, beta=-3.0
    )
    path = write_onnx(tmp_path / "in.onnx", [gemm], weights, inputs, {"y": (np.float32, [3, 64])})
    quantize_model(path, tmp_path / "out.onnx", bits=8, activations=activations)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    wanted, found = run(path, **feeds)[0], run(tmp_path / "out.onnx", **feeds)[0]
    assert nmse(found, wanted) < 1e-3
    assert "Gemm" not in ops(tmp_path / "out.onnx")


def test_weights_behind_transpositions_casts_and_constants_are_found_and_stored_once(write_onnx, run, tmp_path):
    rng = np.random.default_rng(6)
    stored = rng.standard_normal((80, 64)).astype(np.float16)
    held = rng.standard_normal((80, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["w"], ["w1"]),
        helper.make_node("Cast", ["w1"], ["w2"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["w2"], ["w3"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w3"], ["a"], "one"),
        helper.make_node("Gemm", ["x", "w2"], ["b"], "two", transB=1),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(held)),
        helper.make_node("MatMul", ["b", "k"], ["c"], "three"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    path = write_onnx(
        tmp_path / "in.onnx",
        nodes,
        {"w": stored},
        {"x": (np.float32, ["n", 64])},
        {"y": (np.float32, ["n", 80]), "c": (np.float32, ["n", 64])},
    )
    quantize_model(path, tmp_path / "out.onnx", bits=4)
    assert ops(tmp_path / "out.onnx") == [NBITS, NBITS, NBITS, "Add"]
    assert [t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer] == [
        "w.codes", "w.scale", "k.codes", "k.scale",
    ]  # fmt: skip
    weights = decoded(tmp_path / "out.onnx")
    ours = llmq.quantize_tensor(stored.astype(np.float32), 4, 64).dequantize()
    np.testing.assert_array_equal(weights["one"], ours)
    np.testing.assert_array_equal(weights["two"], ours)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for found, wanted in zip(run(tmp_path / "out.onnx", x=x), run(path, x=x), strict=True):
        assert nmse(found, wanted) < 2e-2


def test_a_tied_table_stays_unless_embeddings_are_quantized_and_then_all_its_readers_are(write_onnx, run, tmp_path):
    rng = np.random.default_rng(7)
    table = rng.standard_normal((200, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["h"], "embed"),
        helper.make_node("Transpose", ["table"], ["head"]),
        helper.make_node("MatMul", ["h", "head"], ["y"], "head"),
    ]
    path = write_onnx(
        tmp_path / "in.onnx",
        nodes,
        {"table": table},
        {"tokens": (np.int64, [2, 5])},
        {"y": (np.float32, [2, 5, 200])},
    )
    with pytest.raises(UsageError, match="embedding table, tied to a product"):
        quantize_model(path, tmp_path / "out.onnx")
    report = quantize_model(path, tmp_path / "out.onnx", embeddings=4)
    assert ops(tmp_path / "out.onnx") == [GATHER, NBITS]
    tokens = rng.integers(-200, 200, (2, 5))
    ours = llmq.quantize_tensor(table, 4, 64).dequantize()
    wanted = ours[tokens] @ ours.T
    (found,) = run(tmp_path / "out.onnx", tokens=tokens)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert {str(f.kind) for w in report.plan.quantized for f in w.forms} == {GATHER, NBITS}
    # Both read the same bytes: codes of 4 bits and a float32 scale for every 64.
    assert report.output_bytes == 200 * 64 // 2 + 200 * 4
    assert (tmp_path / "out.onnx.data").stat().st_size == 200 * 64 // 2


def test_nested_graphs_are_quantized_where_they_stand(write_onnx, run, tmp_path):
    rng = np.random.default_rng(8)
    outer, inner = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["r"], "then")], "then", [], [out])
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["r"], "else")],
        "else",
        [],
        [out],
        [numpy_helper.from_array(inner, "v")],
    )
    path = write_onnx(
        tmp_path / "in.onnx",
        [helper.make_node("If", ["flag"], ["y"], "if", then_branch=then, else_branch=other)],
        {"w": outer},
        {"flag": (np.bool_, []), "x": (np.float32, [3, 64])},
        {"y": (np.float32, [3, 64])},
    )
    report = quantize_model(path, tmp_path / "out.onnx", bits=8)
    assert report.nodes == {"MatMulNBits, 8 bits, group 64": 2}
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for flag, weight in ((True, outer), (False, inner)):
        (found,) = run(tmp_path / "out.onnx", x=x, flag=np.array(flag))
        assert 0 < nmse(found, x @ weight) < 1e-4


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_half_precision_stays_half_precision(write_onnx, run, tmp_path, activations):
    rng = np.random.default_rng(9)
    weight = rng.standard_normal((128, 64)).astype(np.float16)
    bias = rng.standard_normal(64).astype(np.float16)
    path = write_onnx(
        tmp_path / "in.onnx",
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5)],
        {"w": weight, "b": bias},
        {"x": (np.float16, [4, 128])},
        {"y": (np.float16, [4, 64])},
    )
    quantize_model(path, tmp_path / "out.onnx", bits=8, activations=activations)
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    x = rng.standard_normal((4, 128)).astype(np.float16)
    (found,) = run(tmp_path / "out.onnx", x=x)
    assert found.dtype == np.float16
    wanted = 0.5 * (x.astype(np.float32) @ weight.astype(np.float32)) + bias
    assert nmse(found.astype(np.float32), wanted) < 1e-3


def test_activations_are_quantized_once_for_all_who_read_them(write_onnx, run, tmp_path):
    rng = np.random.default_rng(10)
    weights = {f"w{i}": rng.standard_normal((64, 64)).astype(np.float32) for i in range(3)}
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"n{i}") for i in range(3)]
    path = write_onnx(
        tmp_path / "in.onnx", nodes, weights,
        {"x": (np.float32, [2, 3, 64])}, {f"y{i}": (np.float32, [2, 3, 64]) for i in range(3)},
    )  # fmt: skip
    quantize_model(path, tmp_path / "out.onnx", activations="int8")
    assert ops(tmp_path / "out.onnx").count("DynamicQuantizeLinear") == 1
    x = rng.standard_normal((2, 3, 64)).astype(np.float32)
    low, high = min(x.min(), 0), max(x.max(), 0)
    for i, found in enumerate(run(tmp_path / "out.onnx", x=x)):
        # Half a step of the activations and half a step of each weight bound every product.
        w = weights[f"w{i}"]
        step_x, step_w = (high - low) / 255, np.abs(w).max(axis=0) / 127
        bound = 0.5 * step_x * np.abs(w).sum(axis=0) + step_w * (np.abs(x).sum(axis=-1, keepdims=True) + 32 * step_x)
        assert (np.abs(found - x @ w) <= bound).all()


def test_the_same_bytes_for_any_number_of_threads_and_origin_is_told(linear, tmp_path):
    path, _ = linear
    made = []
    for threads in (1, 2):
        out = tmp_path / str(threads) / "out.onnx"
        out.parent.mkdir()
        quantize_model(path, out, threads=threads, bits=4, group_size=16)
        made.append([f.read_bytes() for f in sorted(out.parent.iterdir())])
    assert made[0] == made[1]
    model = onnx.load(tmp_path / "1" / "out.onnx", load_external_data=False)
    told = json.loads(next(p.value for p in model.metadata_props if p.key == "llmq"))
    assert (told["version"], told["bits"], told["group_size"]) == (llmq.__version__, 4, 16)
    assert model.producer_name == "by hand"


def test_what_is_not_quantized_is_copied_bit_for_bit(write_onnx, tmp_path):
    rng = np.random.default_rng(11)
    big = rng.integers(-(2**62), 2**62, 4000)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "product", doc_string="why"),
        helper.make_node("Gather", ["big", "i"], ["z"]),
    ]
    path = write_onnx(
        tmp_path / "in.onnx", nodes,
        {"w": rng.standard_normal((64, 64)).astype(np.float32), "big": big, "i": np.array([3, 5])},
        {"x": (np.float32, [2, 64])}, {"y": (np.float32, [2, 64]), "z": (np.int64, [2])},
        external="weights.bin", doc_string="a graph", value_info=[helper.make_tensor_value_info("i", 7, [2])],
    )  # fmt: skip
    quantize_model(path, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(tensors["big"], big)
    np.testing.assert_array_equal(tensors["i"], [3, 5])
    assert "w" not in tensors
    assert model.graph.doc_string == "a graph"
    assert (model.graph.node[0].name, model.graph.node[0].doc_string) == ("product", "why")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "out.onnx.data", "weights.bin"]


def test_nan_stops_the_run_or_keeps_the_weight(write_onnx, tmp_path):
    rng = np.random.default_rng(12)
    good, bad = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    bad[5, 7] = np.nan
    nodes = [helper.make_node("MatMul", ["x", w], [f"y{w}"]) for w in ("good", "bad")]
    path = write_onnx(
        tmp_path / "in.onnx", nodes, {"good": good, "bad": bad},
        {"x": (np.float32, [2, 64])}, {f"y{w}": (np.float32, [2, 64]) for w in ("good", "bad")},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"bad: weight is not finite .*1 NaN and 0 infinite of 4096"):
        quantize_model(path, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx"]
    report = quantize_model(path, tmp_path / "out.onnx", nonfinite="keep")
    assert {w.holder.name: w.reason for w in report.plan.weights} == {"good": "", "bad": "holds NaN or infinity"}


def test_models_of_before_ir_version_4_lose_the_inputs_that_the_format_made_of_weights(write_onnx, run, tmp_path):
    weight = np.random.default_rng(13).standard_normal((64, 64)).astype(np.float32)
    path = write_onnx(
        tmp_path / "in.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight},
        {"x": (np.float32, [2, 64]), "w": (np.float32, [64, 64])},
        {"y": (np.float32, [2, 64])},
        opset=8,
        ir=3,
    )
    quantize_model(path, tmp_path / "out.onnx", bits=8)
    model = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert [v.name for v in model.graph.input] == ["x"]
    x = np.random.default_rng(14).standard_normal((2, 64)).astype(np.float32)
    assert nmse(run(tmp_path / "out.onnx", x=x)[0], x @ weight) < 1e-4


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        ({"bits": 3}, UsageError, "no ONNX operator reads such codes .expected 2/4/8 bits, found 3"),
        ({"bits": 7}, UsageError, "expected 2/4/8 bits, found 7"),
        ({"group_size": 48}, UsageError, "a power of two from 16 on"),
        ({"group_size": -1}, UsageError, "a power of two from 16 on"),
        ({"method": "gptq"}, UsageError, "gptq needs calibration"),
        ({"method": "magic"}, UsageError, "unknown --method"),
        ({"activations": "int4"}, UsageError, "unknown --activations"),
        ({"embeddings": "auto"}, UsageError, "--embeddings auto"),
        ({"activations": "int8", "group_size": 32}, UsageError, "one scale for each row"),
        ({"activations": "int8", "symmetric": False}, UsageError, "without zero points"),
        ({"ignore": ["^w$"]}, UsageError, "nothing to quantize .found 1 --ignore"),
        ({"nonfinite": "what"}, UsageError, "unknown --nonfinite"),
        ({"overrides": ["product=bits:5"]}, UsageError, "found 5"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_refused_before_anything_is_written(linear, tmp_path, flags, kind, message):
    path, _ = linear
    with pytest.raises(kind, match=message):
        quantize_model(path, tmp_path / "out.onnx", **flags)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linear.onnx"]


def test_a_quantized_model_is_not_quantized_again(linear, exported, tmp_path):
    path, _ = linear
    quantize_model(path, tmp_path / "once.onnx")
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize_model(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    path, _ = exported["cnn-dynamo"]
    quantize_model(path, tmp_path / "half.onnx", ignore=["^classifier$", r"10\.weight"])
    report = quantize_model(tmp_path / "half.onnx", tmp_path / "whole.onnx")
    reasons = {w.holder.name: w.reason for w in report.plan.weights}
    assert reasons["10.weight"] == ""
    assert "int4 already" in reasons.values()


def test_overrides_and_ignore_find_weights_nodes_and_torch_modules(exported, tmp_path):
    path, _ = exported["encoder-dynamo"]
    report = quantize_model(
        path, tmp_path / "o.onnx", dry_run=True, ignore=["^head$"], overrides=["linear1$=bits:8,group:32"]
    )
    by_place = {place: w for w in report.plan.weights for place in w.places if len(w.shape) == 2}
    assert by_place["head"].reason == "--ignore"
    assert (by_place["encoder.layers.1.linear1"].spec.bits, by_place["encoder.layers.1.linear2"].spec.bits) == (8, 4)
    assert not list(tmp_path.iterdir())


def test_inputs_of_any_rank_are_fine(write_onnx, run, tmp_path):
    weight = np.random.default_rng(15).standard_normal((64, 64)).astype(np.float32)
    path = write_onnx(
        tmp_path / "in.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight},
        {"x": (np.float32, None)},
        {"y": (np.float32, None)},
    )
    for activations in ("float", "int8"):
        quantize_model(path, tmp_path / "out.onnx", bits=8, activations=activations, overwrite=True)
        for shape in ((64,), (3, 64), (2, 3, 64), (0, 64)):
            x = np.random.default_rng(16).standard_normal(shape).astype(np.float32)
            (found,) = run(tmp_path / "out.onnx", x=x)
            wanted = x @ weight
            assert found.shape == wanted.shape
            assert x.size == 0 or nmse(found, wanted) < 1e-3
