"""A checkpoint that is made as it is asked for, and what llmq makes of it through the real client."""

import json
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
from hub_server import settings
from safetensors.numpy import load_file

import llmq

QUANTIZE = 'import llmq; print(llmq.quantize("random/model", "far", max_memory={memory}).state)'


@pytest.fixture
def repository(script):
    serve, make = script("serve_checkpoint"), script("make_checkpoint")
    config = make.adapt(make.read_config("tiny"), 2, "bfloat16")
    return serve.Repository(config, {}, "bfloat16", 300_000, elements=10_007)


@pytest.fixture
def address(script, repository):
    server = script("serve_checkpoint").serve(repository)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(address, name, asked=None):
    request = urllib.request.Request(f"{address}/random/model/resolve/main/{name}")
    if asked:
        request.add_header("Range", asked)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status, response.read()


def test_bytes_are_the_same_however_they_are_asked_for(tmp_path, repository, address):
    assert len(repository.shards) > 1
    for name in repository.shards:
        status, whole = fetch(address, name)
        assert (status, len(whole)) == (200, repository.size(name))
        for start, stop in ((0, 10), (5, 40_000), (len(whole) - 1000, len(whole))):
            assert fetch(address, name, f"bytes={start}-{stop - 1}") == (206, whole[start:stop])
        (tmp_path / name).write_bytes(whole)
        for tensor, values in load_file(tmp_path / name).items():
            x = values.astype(np.float32)
            assert np.isfinite(x).all()
            assert abs(x.mean() - (1.0 if x.ndim == 1 else 0.0)) < 0.1, tensor


def test_quantizes_to_the_bytes_of_a_copy(tmp_path, repository, address, monkeypatch):
    (tmp_path / "copy").mkdir()
    for name in (*repository.shards, *repository.small):
        (tmp_path / "copy" / name).write_bytes(fetch(address, name)[1])
    llmq.quantize(tmp_path / "copy", tmp_path / "near")
    for name, value in settings(address, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    for memory in (256 << 20, 1 << 30, 8 << 30):
        command = [sys.executable, "-c", QUANTIZE.format(memory=memory)]
        folder = tmp_path / str(memory)
        folder.mkdir()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout) == (0, "quantized\n"), done.stderr
        for path in (tmp_path / "near").glob("*.safetensors"):
            assert (folder / "far" / path.name).read_bytes() == path.read_bytes()
        manifest = json.loads((folder / "far" / "llmq.json").read_text())
        assert manifest["source"]["hub"] == {"repo": "random/model", "commit": repository.commit}
    assert not list((tmp_path / "home").rglob("*.safetensors"))
