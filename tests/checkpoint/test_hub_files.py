"""Repositories read by ranges: the real client against a Hub on the loopback, in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hub_server import COMMIT, Hub, serve, settings

import llmq


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_pico):
    """What the Hub serves."""
    return write_pico(tmp_path_factory.mktemp("hub") / "model", shards=2)


@pytest.fixture(scope="module")
def near(tmp_path_factory, model):
    """What becomes of it when it lies in a folder."""
    return llmq.quantize(model, tmp_path_factory.mktemp("near") / "out").output


CLIENT = """
import json, sys
import llmq
from llmq.checkpoint import hub_files
from llmq.errors import LlmqError
hub_files._WAIT = 0.02
for line in sys.stdin:
    try:
        answer = {"state": llmq.quantize("org/name", **json.loads(line)).state}
    except LlmqError as error:
        answer = {"kind": type(error).__name__, "text": str(error), "hint": error.hint}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process with the real client of the Hub, which reads its settings when it is imported."""

    def __init__(self, process, home):
        self.process = process
        self.home = home

    def quantize(self, output, **flags):
        """What a run gives, or fails with."""
        print(json.dumps(flags | {"output": str(output)}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def client(tmp_path_factory, model):
    with pytest.MonkeyPatch.context() as patch, serve() as endpoint:
        patch.setattr(Hub, "files", {path.name: path.read_bytes() for path in model.iterdir()})
        home = tmp_path_factory.mktemp("home")
        environment = os.environ | settings(endpoint, home) | {"HF_TOKEN": "hf_secret"}
        command = [sys.executable, "-c", CLIENT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
            yield Client(process, home)
            process.stdin.close()
            assert process.wait(60) == 0


@pytest.fixture
def hub(client, monkeypatch):
    """A Hub without faults yet, and its client."""
    for name, value in {"faults": [], "tokens": [], "ranges": [], "signed": {}, "uses": 1 << 30}.items():
        monkeypatch.setattr(Hub, name, value)
    return client


def weights_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def test_the_same_bytes_with_nothing_of_the_weights_on_the_disk(tmp_path, hub, near):
    assert hub.quantize(tmp_path / "far") == {"state": "quantized"}
    assert not list(hub.home.rglob("*.safetensors"))
    assert set(Hub.tokens) == {None}  # it belongs to the Hub, not to whom it sends us
    assert Hub.ranges
    assert hub.quantize(tmp_path / "far") == {"state": "already complete"}
    assert weights_of(tmp_path / "far") == weights_of(near)
    source = json.loads((tmp_path / "far" / "llmq.json").read_text())["source"]
    assert source["hub"] == {"repo": "org/name", "commit": COMMIT}
    shard = "model-00001-of-00002.safetensors"
    assert source["files"][shard]["sha256"] == hashlib.sha256(Hub.files[shard]).hexdigest()


@pytest.mark.parametrize("faults", [["busy", "busy"], ["cut"] * 5, ["busy", "cut", "cut", "busy"]])
def test_what_breaks_off_is_continued(tmp_path, hub, near, monkeypatch, faults):
    monkeypatch.setattr(Hub, "faults", ["", "", *faults])
    monkeypatch.setattr(Hub, "uses", 3)  # then the Hub must be asked again
    assert hub.quantize(tmp_path / "far") == {"state": "quantized"}
    assert not Hub.faults
    assert len(Hub.signed) > 2
    assert weights_of(tmp_path / "far") == weights_of(near)


@pytest.mark.parametrize(
    ("faults", "text"),
    [(["whole"], "the server sends no ranges of files (expected 206, found 200)"), (["other"], "sends another range")],
)
def test_an_answer_that_is_not_the_range(tmp_path, hub, monkeypatch, faults, text):
    monkeypatch.setattr(Hub, "faults", faults)
    found = hub.quantize(tmp_path / "far")
    assert found["kind"] == "NetworkError"
    assert text in found["text"]


def test_wrong_bytes_are_never_published(tmp_path, hub, near, monkeypatch):
    monkeypatch.setattr(Hub, "faults", ["", "", "", "flipped"])
    found = hub.quantize(tmp_path / "far")
    assert found["kind"] == "ChecksumError"
    assert "wrong bytes (expected SHA-256" in found["text"]
    assert not list((tmp_path / "far").rglob("*.safetensors*"))
    assert hub.quantize(tmp_path / "far") == {"state": "quantized"}
    assert weights_of(tmp_path / "far") == weights_of(near)


def test_a_server_that_goes_away_loses_nothing(tmp_path, hub, near, monkeypatch):
    monkeypatch.setattr(Hub, "faults", [*[""] * 6, *["busy"] * 40])
    assert hub.quantize(tmp_path / "far")["kind"] == "NetworkError"
    assert (tmp_path / "far" / ".llmq").is_dir()
    monkeypatch.setattr(Hub, "faults", [])
    assert hub.quantize(tmp_path / "far") == {"state": "quantized"}
    assert weights_of(tmp_path / "far") == weights_of(near)


def test_a_download_and_what_is_in_the_cache_then(tmp_path, hub, near):
    assert hub.quantize(tmp_path / "downloaded", download=True) == {"state": "quantized"}
    assert list(hub.home.rglob("*.safetensors"))
    asked = len(Hub.ranges)
    assert hub.quantize(tmp_path / "cached") == {"state": "quantized"}
    assert len(Hub.ranges) == asked
    for name in ("downloaded", "cached"):
        assert weights_of(tmp_path / name) == weights_of(near)
