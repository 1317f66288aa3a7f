"""Repositories read by ranges: the real client against a Hub on the loopback, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hub_server import COMMIT, Hub, serve, settings

import llmq


@pytest.fixture
def hub(tmp_path, make_pico, monkeypatch):
    make_pico(tmp_path / "model", 2)
    monkeypatch.setattr(Hub, "files", {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()})
    for name, value in {"paths": [], "faults": [], "tokens": [], "ranges": [], "signed": {}, "uses": 1 << 30}.items():
        monkeypatch.setattr(Hub, name, value)
    with serve() as endpoint:
        yield endpoint


QUANTIZE = """
import json, sys
import llmq
from llmq.checkpoint import hub_files
from llmq.errors import LlmqError
hub_files._WAIT = 0.02
for flags in json.loads(sys.argv[1]):
    try:
        answer = {"state": llmq.quantize("org/name", **flags).state}
    except LlmqError as error:
        answer = {"kind": type(error).__name__, "text": str(error), "hint": error.hint}
    print(json.dumps(answer))
"""


def quantize(hub, home, *runs, **environment):
    command = [sys.executable, "-c", QUANTIZE, json.dumps(runs)]
    changed = settings(hub, home) | {"HF_TOKEN": "hf_secret"} | environment
    done = subprocess.run(
        command, env=os.environ | changed, cwd=home, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def weights_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def test_the_same_bytes_with_nothing_of_the_weights_on_the_disk(tmp_path, hub):
    llmq.quantize(tmp_path / "model", tmp_path / "local")
    runs = [{"output": "far"}, {"output": "far"}, {"output": "downloaded", "download": True}, {"output": "cached"}]
    first = quantize(hub, tmp_path, runs[0])
    assert first == [{"state": "quantized"}]
    assert not [path for path in (tmp_path / "hub").rglob("*.safetensors") if "model" in path.name]
    assert set(Hub.tokens) == {None}  # it belongs to the Hub, not to whom it sends us
    assert Hub.ranges
    assert [found["state"] for found in quantize(hub, tmp_path, *runs[1:])] == ["already complete", *["quantized"] * 2]
    for name in ("far", "downloaded", "cached"):
        assert weights_of(tmp_path / name) == weights_of(tmp_path / "local")
    source = json.loads((tmp_path / "far" / "llmq.json").read_text())["source"]
    assert source["hub"] == {"repo": "org/name", "commit": COMMIT}
    shard = "model-00001-of-00002.safetensors"
    assert source["files"][shard]["sha256"] == hashlib.sha256(Hub.files[shard]).hexdigest()


@pytest.mark.parametrize("faults", [["busy", "busy"], ["cut"] * 5, ["busy", "cut", "cut", "busy"]])
def test_what_breaks_off_is_continued(tmp_path, hub, monkeypatch, faults):
    llmq.quantize(tmp_path / "model", tmp_path / "local")
    monkeypatch.setattr(Hub, "faults", ["", "", *faults])
    monkeypatch.setattr(Hub, "uses", 3)  # then the Hub must be asked again
    assert quantize(hub, tmp_path, {"output": "far"}) == [{"state": "quantized"}]
    assert not Hub.faults
    assert len(Hub.signed) > 2
    assert weights_of(tmp_path / "far") == weights_of(tmp_path / "local")


@pytest.mark.parametrize(
    ("faults", "text"),
    [(["whole"], "the server sends no ranges of files (expected 206, found 200)"), (["other"], "sends another range")],
)
def test_an_answer_that_is_not_the_range(tmp_path, hub, monkeypatch, faults, text):
    monkeypatch.setattr(Hub, "faults", faults)
    [found] = quantize(hub, tmp_path, {"output": "far"})
    assert found["kind"] == "NetworkError"
    assert text in found["text"]


def test_wrong_bytes_are_never_published(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(Hub, "faults", ["", "", "", "flipped"])
    [found, again] = quantize(hub, tmp_path, {"output": "far"}, {"output": "far"})
    assert found["kind"] == "ChecksumError"
    assert "wrong bytes (expected SHA-256" in found["text"]
    assert again == {"state": "quantized"}
    llmq.quantize(tmp_path / "model", tmp_path / "local")
    assert weights_of(tmp_path / "far") == weights_of(tmp_path / "local")


def test_a_server_that_goes_away_loses_nothing(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(Hub, "faults", [*[""] * 6, *["busy"] * 40])
    [found] = quantize(hub, tmp_path, {"output": "far"})
    assert found["kind"] == "NetworkError"
    assert (tmp_path / "far" / ".llmq").is_dir()
    monkeypatch.setattr(Hub, "faults", [])
    before = len(Hub.ranges)
    assert quantize(hub, tmp_path, {"output": "far"}) == [{"state": "quantized"}]
    assert before
    llmq.quantize(tmp_path / "model", tmp_path / "local")
    assert weights_of(tmp_path / "far") == weights_of(tmp_path / "local")
