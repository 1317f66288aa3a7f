"""`llmq verify` as users and other programs meet it."""

import hashlib
import json
import shutil

import pytest


@pytest.fixture
def copy(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "copy")


def test_a_whole_output(call, small_model, sample_model):
    code, out, err = call("-q", "verify", small_model)
    assert (code, err) == (0, "")
    assert out.startswith(f"{small_model}: ")
    digest = hashlib.sha256((small_model / "llmq.json").read_bytes()).hexdigest()
    assert out.splitlines()[0].endswith(": all as written")
    assert out.splitlines()[1:] == [f"  sha256 of llmq.json: {digest}"]
    code, out, _ = call("-q", "verify", small_model, "--against", sample_model)
    assert code == 0
    assert "the same bit for bit\n" in out.splitlines(keepends=True)[2]


def test_json_has_the_keys_of_the_contract(call, copy, sample_model):
    code, out, _ = call("-q", "verify", copy, "--against", sample_model, "--full", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == 1
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["files"] == len(list(copy.iterdir()))
    assert found["tensors"] == 143
    assert found["against"]["share"] == 1.0
    data = bytearray((copy / "tokenizer.json").read_bytes())
    data[1000] ^= 4
    (copy / "tokenizer.json").write_bytes(data)
    code, out, err = call("-q", "verify", copy, "--json")
    found = json.loads(out)
    assert code == 6
    [problem] = found["problems"]
    assert problem["file"] == "tokenizer.json"
    assert problem["message"] == f"tokenizer.json: {problem['what']}"
    assert err.splitlines()[0] == f"error: {copy}: 1 problem found"
    assert err.splitlines()[1].startswith("hint: copy or download it again")


def test_what_is_wrong_is_listed_and_escaped(call, copy):
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (copy / "x\x1b[31m.bin").write_bytes(b"")
    code, out, err = call("-q", "verify", copy)
    assert code == 6
    lines = out.splitlines()
    assert lines[0].startswith("model.safetensors: wrong size (expected ")
    assert lines[1].startswith("x\\x1b[31m.bin: weights that are no part of the output")
    assert err.startswith(f"error: {copy}: 2 problems found\n")
    assert call("-q", "verify", copy, "--ignore", "model.safetensors", "--ignore", "x\x1b[31m.bin")[0] == 6


def test_an_edited_card_may_be_ignored(call, copy):
    (copy / "README.md").write_text("mine")
    assert call("-q", "verify", copy, "--ignore", "README.md")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["nowhere"], 3, "no such folder"),
        (["{}", "--full"], 2, "--full compares with a source"),
        (["{}", "--against", "nowhere"], 3, "nowhere: no such folder"),
        (["x" * 300], 3, "no such folder"),
        (["s3://bucket/model"], 2, "outputs are read from this machine"),
    ],
)
def test_errors(call, small_model, arguments, code, word):
    found, _, err = call("-q", "verify", *(argument.format(small_model) for argument in arguments))
    assert found == code
    assert word in err
