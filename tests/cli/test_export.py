"""`llmq export` as users meet it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from llmq import integer


@pytest.fixture
def model(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "model")


def test_into_the_models_folder(call, model):
    code, out, err = call("export", model, "--to", "onnx", "-o", model / "model.onnx")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"wrote {model / 'model.onnx'} (")
    assert lines[0].endswith("opset 23, int8")
    assert lines[-1].startswith("ONNX Runtime and llmq agree on 27 tokens: logits within ")
    assert "writing model.onnx.data" in err
    assert (model / "model.onnx").is_file()
    code, _, err = call("export", model, "--to", "onnx", "-o", model)
    assert (code, err.splitlines()[-1]) == (2, "hint: replace it with --overwrite")
    assert call("-q", "export", model, "-o", model / "model.onnx", "--overwrite", "--compute", "float32")[0] == 0


def test_json(call, model, tmp_path):
    output = tmp_path / "out" / "decoder.onnx"
    code, out, err = call("-q", "export", model, "-o", output, "--no-check", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["schema"] == 1
    assert found["output"] == str(output)
    assert {f["name"]: f["bytes"] for f in found["files"]} == {
        name: (output.parent / name).stat().st_size
        for name in ("decoder.onnx", "decoder.onnx.data", "model.safetensors")
    }
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(found["copied"])
    assert found["inputs"][0]["name"] == "input_ids"
    assert found["outputs"][0]["shape"] == ["batch_size", "sequence_length", 4096]
    assert (found["check"], found["compute"], found["opset"]) == (None, "int8", 23)


def test_wrong_flags(call, model, tmp_path):
    code, _, err = call("export", model, "-o", tmp_path / "out")
    assert code == 2
    assert err.splitlines() == [
        f"error: {tmp_path / 'out'}: the ending of -o names no target",
        "hint: say --to onnx",
    ]
    assert call("export", model, "--to", "onnx", "-o", tmp_path / "out.bin")[0] == 2
    assert call("export", model, "--to", "tflite", "-o", tmp_path / "out.onnx")[0] == 2
    assert call("export", model)[0] == 2
    assert call("export", tmp_path / "nothing", "-o", tmp_path / "out.onnx")[0] == 3
    code, _, err = call("export", model, "-o", tmp_path / "out.onnx", "--revision", "main")
    assert (code, "a revision needs a repository" in err) == (2, True)


def test_without_the_package(environment, model):
    code = (
        "import sys; sys.modules['onnx'] = None; from llmq.cli.main import status\n"
        "sys.exit(status(['export', sys.argv[1], '-o', sys.argv[1] + '/model.onnx']))"
    )
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        "error: needs the package onnx",
        'hint: pip install "numba-llmq[onnx]"',
    ]


@pytest.fixture
def network(tmp_path):
    layers = [integer.FloatConv2d(np.ones((2, 1, 3, 3), np.float32)), integer.ReLU(), integer.Flatten()]
    made = integer.calibrate(layers, [np.ones((4, 1, 5, 5), np.float32)])
    integer.save(made, tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


@pytest.mark.parametrize("style", ["qdq", "qoperator"])
def test_a_saved_network(call, network, tmp_path, style):
    output = tmp_path / "network.onnx"
    code, out, _ = call("export", network, "-o", output, "--style", style, "--input-shape", "1,?,?", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["style"] == style
    assert found["inputs"][0]["shape"] == ["batch", 1, "axis_2", "axis_3"]
    x = np.random.default_rng(0).random((2, 1, 5, 5), np.float32)
    (y,) = onnxruntime.InferenceSession(output).run(None, {"input": x})
    np.testing.assert_allclose(y, integer.load(network)(x), atol=1e-5)
    code, _, err = call("export", network, "-o", output)
    assert (code, err.splitlines()[-1]) == (2, "hint: replace it with --overwrite")
    assert call("export", network, "-o", output, "--overwrite")[1].startswith(f"wrote {output} (")


@pytest.mark.parametrize("name", ["network.safetensors", "other.bin"])
def test_networks_are_written_to_onnx_files_only(call, network, name):
    before = network.read_bytes()
    code, _, err = call("export", network, "--to", "onnx", "-o", network.with_name(name), "--overwrite")
    assert (code, "the output must end in .onnx" in err) == (2, True)
    assert [path.name for path in network.parent.iterdir()] == ["network.safetensors"]
    assert network.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--input-shape", "1,99999999999,99999999999"), "does not take items of shape"),
        (("--compute", "int8"), "--compute is for a language model in a folder only"),
        (("--no-check",), "--check is for a language model in a folder only"),
        (("--input-shape", "1,x"), "is no list of sizes"),
        (("--input-shape", "0,3,3"), "has a size below 1"),
        (("--input-shape", "7,5,5"), "does not fit"),
    ],
)
def test_flags_that_do_not_fit_a_network(call, network, tmp_path, flags, message):
    code, _, err = call("export", network, "-o", tmp_path / "network.onnx", *flags)
    assert code == 2
    assert message in err
    assert not (tmp_path / "network.onnx").exists()


def test_flags_of_networks_do_not_fit_a_language_model(call, model):
    code, _, err = call("export", model, "-o", model / "model.onnx", "--style", "qdq")
    assert (code, err.splitlines()[0]) == (2, "error: --style is for a file of llmq.integer.save (.safetensors) only")


def test_weights_that_are_no_network(call, model, tmp_path):
    code, _, err = call("export", model / "model.safetensors", "-o", tmp_path / "network.onnx")
    assert code == 3
    assert "no network of integer layers" in err
