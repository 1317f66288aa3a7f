"""The real client of the Hub against one on the loopback, in a process of its own: it reads its settings on import."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import COMMIT, Hub, serve, settings

from llmq.checkpoint.hub import download, parse_repo
from llmq.errors import InputError, UsageError


@pytest.fixture
def hub(tmp_path, make_pico):
    make_pico(tmp_path / "model", 2)
    Hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    Hub.files |= {
        "llmq.json": b"{}",
        "pytorch_model.bin": b"\x80\x02",
        "original/x.safetensors": b"",
        "consolidated.safetensors": b"",
    }
    Hub.paths = []
    with serve() as endpoint:
        yield endpoint


ASK = """
import json, sys
from llmq.checkpoint.source import open_local
from llmq.errors import LlmqError
for model in json.loads(sys.argv[1]):
    try:
        with open_local(model) as source:
            names = sorted(path.name for path in source.folder.iterdir())
            hub = source.identity()["hub"]
            answer = {"names": names, "label": source.label, "hub": hub, "tensors": len(source.tensors)}
    except LlmqError as error:
        answer = {"kind": type(error).__name__, "text": str(error), "hint": error.hint}
    print(json.dumps(answer))
"""


def ask(models, endpoint, home, **environment):
    changed = settings(endpoint, home) | environment
    command = [sys.executable, "-c", ASK, json.dumps(models)]
    done = subprocess.run(
        command, env=os.environ | changed, cwd=home, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_repositories(tmp_path, hub):
    models = ["org/name", f"org/name@{COMMIT}", "org/name@v9", "org/absent", "org/gated"]
    plain, pinned, no_revision, absent, gated = ask(models, hub, tmp_path)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert plain["names"] == ["config.json", "llmq.json", *shards, "model.safetensors.index.json", "tokenizer.json"]
    assert plain["label"] == "org/name"
    assert plain["hub"] == {"repo": "org/name", "commit": COMMIT}
    assert plain["tensors"] == 9
    assert pinned["names"] == plain["names"]
    assert (no_revision["kind"], no_revision["text"]) == ("InputError", "org/name@v9: no such revision")
    assert absent["kind"] == "InputError"
    assert "no such repository on the Hub" in absent["text"]
    assert gated["kind"] == "InputError"
    assert "hf auth login" in gated["hint"]
    asked = " ".join(Hub.paths)
    assert not any(name in asked for name in ("pytorch_model.bin", "modeling_evil.py", "original", "consolidated"))
    offline = ask(["org/name", "org/other"], hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline[0]["names"] == plain["names"]
    assert offline[1]["kind"] == "NetworkError"
    assert "local folder" in offline[1]["hint"]


RUN = """
import json, sys
import llmq
found = llmq.verify("org/name")
shape = llmq.load("org/name")([1, 2]).shape
print(json.dumps({"tokens": shape, "ok": found.ok, "problems": list(map(str, found.problems))}))
"""


def test_an_output_that_was_published_is_whole_and_runs(tmp_path, hub, write_pico):
    import llmq

    out = llmq.quantize(write_pico(tmp_path / "in"), tmp_path / "out").output
    Hub.files = {path.name: path.read_bytes() for path in out.iterdir()}
    Hub.files |= {".gitattributes": b"*.safetensors filter=lfs\n"}
    command = [sys.executable, "-c", RUN]
    found = []
    for home in ("one", "two"):
        (tmp_path / home).mkdir()
        changed = os.environ | settings(hub, tmp_path / home)
        done = subprocess.run(command, env=changed, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
        Hub.files |= {"recipe.json": Hub.files["recipe.json"].replace(b"mse", b"rtn")}
    assert found[0] == {"tokens": [2, 96], "ok": True, "problems": []}
    assert [problem.partition(" (")[0] for problem in found[1]["problems"]] == ["recipe.json: not as it was written"]


@pytest.mark.parametrize("more", [{}, {"config.json": b"{}"}])
def test_a_repository_of_pickles(tmp_path, hub, monkeypatch, more):
    monkeypatch.setattr(Hub, "pickles", {"pytorch_model.bin": b"\x80\x02", "onnx/model.safetensors": b""} | more)
    [pickles] = ask(["org/pickles"], hub, tmp_path)
    assert pickles["kind"] == "UnsupportedError"
    assert pickles["text"].startswith("org/pickles: only pickled weights, which llmq never opens")
    assert "safetensors/convert" in pickles["hint"]
    assert not any("pytorch_model" in path for path in Hub.paths)
    if more:  # without its list of files, only what is here can be told
        [offline] = ask(["org/pickles"], hub, tmp_path, HF_HUB_OFFLINE="1")
        assert (offline["kind"], offline["text"]) == ("InputError", "org/pickles: no safetensors files")


def test_network_failures(tmp_path, hub):
    [broken] = ask(["org/broken"], hub, tmp_path)
    assert broken["kind"] == "NetworkError"
    [refused] = ask(["org/name"], "http://127.0.0.1:9", tmp_path)
    assert refused["kind"] == "NetworkError"
    assert "cannot be reached" in refused["text"]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@main", ("org/name", "main")),
        ("Qwen/Qwen3-0.6B@refs/pr/1", ("Qwen/Qwen3-0.6B", "refs/pr/1")),
        ("name", None),
        ("./name", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("org/..", None),
        ("org/na me", None),
        ("org/name@", None),
        ("org/name@../x", None),
        ("org/name\n", None),
        ("a--b/c", None),
        ("https://hf.co/a", None),
        ("", None),
    ],
)
def test_names(model, found):
    assert parse_repo(model) == found


def test_refused_before_asking_anyone():
    with pytest.raises(UsageError, match="two different revisions"):
        download("org/name@a", revision="b")
    with pytest.raises(InputError, match="no such folder") as error:
        download("nothing")
    assert "org/name[@revision]" in error.value.hint
