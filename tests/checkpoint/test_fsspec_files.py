"""Folders that fsspec reads: in memory, and on a real web server on the loopback."""

import asyncio
import hashlib
import http.server
import threading
from contextlib import contextmanager
from functools import partial

import fsspec
import pytest
from aiohttp import web

import llmq
from llmq.checkpoint import fsspec_files
from llmq.checkpoint.source import open_local, open_source
from llmq.errors import InputError, NetworkError, UsageError


@pytest.fixture
def model(tmp_path, make_pico):
    make_pico(tmp_path / "model", 2)
    return tmp_path / "model"


@pytest.fixture
def memory(model):
    """The model in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for path in model.iterdir():
        system.pipe_file(f"/bucket/model/{path.name}", path.read_bytes())
    yield system
    system.store.clear()


@contextmanager
def web_server(folder):
    """Serve the folders in a folder, ranges and lists of files included."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ports = []

    async def start():
        app = web.Application()
        app.router.add_static("/", folder, show_index=True)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(site._server.sockets[0].getsockname()[1])
        ready.set()
        return runner

    def run():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def weights_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def test_the_same_bytes_from_elsewhere(tmp_path, model, memory):
    report = llmq.quantize("memory://bucket/model", tmp_path / "far")
    llmq.quantize(model, tmp_path / "near")
    assert report.state == "quantized"
    assert weights_of(tmp_path / "far") == weights_of(tmp_path / "near")
    assert (tmp_path / "far" / "tokenizer.json").exists()
    assert llmq.quantize("memory://bucket/model", tmp_path / "far").state == "already complete"
    with open_source("memory://bucket/model") as source:
        folder = source.folder
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
        ]
        shard = next(iter(source.tensors.values())).file
        memory.pipe_file(f"/bucket/model/{shard}", b"shorter")
        with pytest.raises(InputError, match="changed while it was read"):
            source.check_unchanged()
    assert not folder.exists()


def test_a_web_server(tmp_path, model):
    llmq.quantize(model, tmp_path / "near")
    with web_server(tmp_path) as address:
        llmq.quantize(f"{address}/model/", tmp_path / "far")
        assert weights_of(tmp_path / "far") == weights_of(tmp_path / "near")
        with pytest.raises(InputError, match="no safetensors files"):
            open_source(f"{address}/nowhere")


def test_a_server_without_ranges_or_lists(tmp_path, model):
    class Whole(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def list_directory(self, path):
            self.send_error(403)

    handler = partial(Whole, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(NetworkError, match="sends another range"):
            llmq.quantize(f"http://127.0.0.1:{server.server_port}/model", tmp_path / "far")
        server.shutdown()
    assert not (tmp_path / "far" / "llmq.json").exists()


def test_what_fails(model, memory, monkeypatch):
    with pytest.raises(UsageError, match="a revision needs a repository"):
        open_source("memory://bucket/model", revision="main")
    with pytest.raises(UsageError, match="mapped from files of this machine"):
        open_local("memory://bucket/model")
    with pytest.raises(UsageError, match="Protocol not known"):
        open_source("nothing://bucket/model")
    with pytest.raises(InputError, match="no safetensors files"):
        open_source("memory://bucket")
    monkeypatch.setattr(fsspec_files.time, "sleep", lambda seconds: None)
    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        raise OSError("the line is dead")

    monkeypatch.setattr(type(memory), "cat_file", failing)
    with pytest.raises(NetworkError, match="the line is dead"):
        open_source("memory://bucket/model")
    assert len(calls) >= fsspec_files._RETRIES


def test_names_that_lead_elsewhere(tmp_path, memory, monkeypatch):
    listed = memory.ls("/bucket/model", detail=True)
    evil = [{"name": f"/bucket/model/{name}", "size": 1, "type": "file"} for name in ("..", "tokenizer/../../x.json")]
    monkeypatch.setattr(type(memory), "ls", lambda self, path, detail=True, **kwargs: listed + evil)
    with open_source("memory://bucket/model") as source:
        assert {path.name for path in source.folder.iterdir()} <= {entry["name"].rsplit("/")[-1] for entry in listed}
