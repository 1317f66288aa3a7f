"""`llmq quantize model.onnx` as users meet it."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

CONTRACT = {
    "schema", "output", "source_bytes", "output_bytes", "bits_per_weight", "bits_per_weight_quantized", "seconds",
    "peak_anon_bytes", "predicted_peak_bytes", "tensors",
}  # fmt: skip


def write(path, width=128, layers=2, external=False):
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"layers.{i}.w"], [f"h{i + 1}"], f"layer{i}"))
        weights.append(numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), f"layers.{i}.w"))
    nodes.append(helper.make_node("Add", [f"h{layers}", "bias"], ["y"]))
    weights.append(numpy_helper.from_array(np.ones(width, np.float32), "bias"))
    values = [helper.make_tensor_value_info(n, 1, ["n", width]) for n in ("h0", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if external:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.bin", size_threshold=64)
    else:
        path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def model(tmp_path):
    return write(tmp_path / "m.onnx")


def test_the_summary_tells_sizes_nodes_reasons_error_and_memory(call, model, tmp_path):
    code, out, err = call("quantize", model, "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "132 kB -> 18.9 kB" in out
    assert "2 nodes MatMulNBits, 4 bits, group 64" in out
    assert "1 kept: 1-D" in out
    assert "4.500 bits per quantized weight" in out
    assert "(NMSE)" in out
    assert "peak memory" in out
    assert "quantizing" in err


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_json_is_one_object_with_the_keys_of_the_contract(call, model, tmp_path, flags):
    code, out, _ = call("quantize", model, "-o", tmp_path / "out.onnx", "--json", "--bits", 8, *flags)
    found = json.loads(out)
    assert code == 0
    assert found.keys() >= CONTRACT
    first = found["tensors"][0]
    assert (first["name"], first["bits"], first["becomes"]) == ("layers.0.w", 8, ["MatMulNBits"])
    assert (first["nmse"] is None) == bool(flags)
    assert (tmp_path / "out.onnx").exists() == (not flags)


def test_a_dry_run_lists_what_becomes_of_each_kind_of_weight(call, model, tmp_path):
    code, out, _ = call(
        "quantize", model, "-o", tmp_path / "out.onnx", "--dry-run", "--activations", "int8", "--ignore", "layer1"
    )
    lines = [line for line in out.splitlines() if line.startswith("layers.*")]
    assert code == 0
    assert ["8 bits, a scale for each row" in lines[0], "kept: --ignore" in lines[1]] == [True, True]
    assert "nothing was written" in out
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        (["--lm-head", 8], 2, "--lm-head means nothing"),
        (["--for", "vllm"], 2, "--for means nothing"),
        (["--calibrate", __file__], 2, "--calibrate means nothing"),
        (["--max-shard-size", "1GB"], 2, "--max-shard-size means nothing"),
        (["--target-bpw", 3], 2, "--target-bpw means nothing"),
        (["--report", "r.html"], 2, "--report means nothing"),
        (["--no-resume"], 2, "--no-resume means nothing"),
        (["--revision", "main"], 2, "--revision means nothing"),
        (["--bits", 5], 2, "2/4/8 bits"),
        (["--group-size", "channel"], 2, "a power of two"),
        (["--activations", "fp8"], 2, "--activations"),
        (["--threads", 100_000], 2, "--threads"),
    ],
)
def test_flags_that_mean_nothing_are_refused_by_name(call, model, tmp_path, flags, code, word):
    found, out, err = call("quantize", model, "-o", tmp_path / "out.onnx", *flags)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, out, len(errors)) == (code, "", 1)
    assert word in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_activations_of_a_checkpoint_are_not_stored(call, tmp_path, sample_model):
    code, _, err = call("quantize", sample_model, "-o", tmp_path / "out", "--activations", "int8")
    assert code == 2
    assert "--activations is for ONNX models" in err


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [(b"garbage" * 9, 3, "not an ONNX model"), (None, 3, "no such file"), (b"GGUF" + bytes(60), 3, "a GGUF file")],
)
def test_other_files_are_input_errors_of_one_line(call, tmp_path, content, code, word):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    found, out, err = call("quantize", path, "-o", tmp_path / "out.onnx")
    assert (found, out) == (code, "")
    assert word in err.splitlines()[0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_a_stopped_run_leaves_nothing(environment, tmp_path):
    path = write(tmp_path / "m.onnx", width=1024, layers=12)
    program = [sys.executable, "-m", "llmq", "quantize", str(path), "-o", str(tmp_path / "out.onnx"), "--threads", "1"]
    with subprocess.Popen(
        [*program, "--method", "entropy"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not process.stderr.readline().startswith("quantizing"):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        assert process.stderr.read().splitlines()[-1] == "error: interrupted"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_memory_stays_far_below_a_model_with_external_data(spawn, tmp_path):
    path = write(tmp_path / "m.onnx", width=4096, layers=8, external=True)
    result = spawn("quantize", path, "-o", tmp_path / "out.onnx", "--json", "--threads", "1")
    found = json.loads(result.stdout)
    assert found["source_bytes"] > 8 * 4096**2 * 4
    assert found["peak_anon_bytes"] < found["source_bytes"] / 2
    assert found["peak_anon_bytes"] < found["predicted_peak_bytes"]
