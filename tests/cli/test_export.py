"""`llmq export` as users meet it."""

import json
import shutil
import subprocess
import sys

import pytest


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
