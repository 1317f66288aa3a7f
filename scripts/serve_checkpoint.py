"""Serve a random checkpoint of a real shape by the routes of the Hub: it exists nowhere, its bytes are made on request.

python scripts/serve_checkpoint.py llama3-70b --port 8000
HF_ENDPOINT=http://127.0.0.1:8000 llmq quantize random/model -o out

Every tensor is cut from one random array, each from a place of its own: the same bytes whenever they are asked for, as
quick as memory is copied. Weights like these show memory and speed, and never quality.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import click
import numpy as np

from llmq.architectures import decoder_config
from llmq.checkpoint.layout import index_of, lay_out
from llmq.cli.sizes import SIZE, format_size
from llmq.errors import LlmqError
from make_checkpoint import adapt, companions, encode, read_config, tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmq.checkpoint.layout import OutputTensor, ShardLayout

__all__ = ["REPOSITORY", "Handler", "Repository", "serve"]

REPOSITORY: Final = "random/model"
_ELEMENTS: Final = 33_554_393
"""Of the random array: a prime, so that no two tensors of a model meet it in step."""

_STRIDE: Final = 7_368_787
_SPREAD: Final = 0.01
"""Standard deviation of weights: about that of a linear of 8192 inputs."""

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True)
class Repository:
    """Files of a random model.

    Parameters
    ----------
    config : dict
        Its ``config.json``.
    beside : dict
        Tokenizer files and the like, by name.
    dtype : str
        bfloat16, float16 or float32.
    max_shard_size : int
        Bytes.
    elements : int
        Of the random array that all weights are cut from.
    """

    config: dict[str, Any]
    beside: dict[str, bytes]
    dtype: str
    max_shard_size: int
    elements: int = _ELEMENTS

    @cached_property
    def shards(self) -> dict[str, ShardLayout]:
        """Files with weights, by name."""
        found = lay_out(tensors_of(decoder_config(self.config), self.dtype), self.max_shard_size)
        return {shard.file: shard for shard in found}

    @cached_property
    def small(self) -> dict[str, bytes]:
        """The other files, by name."""
        files = {"config.json": json.dumps(self.config, indent=2).encode(), **self.beside}
        if len(self.shards) > 1:
            files["model.safetensors.index.json"] = json.dumps(index_of(tuple(self.shards.values()))).encode()
        return files

    @cached_property
    def commit(self) -> str:
        """What stands for all of it: 40 hexadecimal digits."""
        told = json.dumps([self.config, self.dtype, self.max_shard_size, self.elements], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:40]

    @cached_property
    def _weights(self) -> memoryview:
        draw = np.random.default_rng(0)
        return memoryview(encode(np.float32(_SPREAD) * draw.standard_normal(self.elements, np.float32), self._code))

    @cached_property
    def _vectors(self) -> memoryview:
        """What norms are cut from."""
        draw = np.random.default_rng(1)
        return memoryview(encode(1 + np.float32(0.1) * draw.standard_normal(self.elements, np.float32), self._code))

    @property
    def _code(self) -> str:
        return next(iter(self.shards.values())).tensors[0].dtype

    def size(self, name: str) -> int:
        """Bytes of a file. Raises KeyError if there is none."""
        return self.shards[name].size if name in self.shards else len(self.small[name])

    def read(self, name: str, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes `start` to `stop` of a file, in pieces."""
        if name not in self.shards:
            yield memoryview(self.small[name])[start:stop]
            return
        shard = self.shards[name]
        if start < len(shard.header):
            yield memoryview(shard.header)[start:stop]
            start = len(shard.header)
        offsets = [shard.offsets[tensor.name] for tensor in shard.tensors]
        number = bisect_right(offsets, start) - 1
        while start < stop:
            tensor, first = shard.tensors[number], offsets[number]
            end = min(stop, first + tensor.nbytes)
            yield from self._cut(tensor, start - first, end - first)
            start, number = max(start, end), number + 1

    def _cut(self, tensor: OutputTensor, start: int, stop: int) -> Iterator[memoryview]:
        """Bytes of a tensor: those of the array from the tensor's own place on, around and around."""
        source = self._weights if len(tensor.shape) > 1 else self._vectors
        width = len(source) // self.elements
        own = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little") * _STRIDE % self.elements
        while start < stop:
            place = (own * width + start) % len(source)
            count = min(stop - start, len(source) - place)
            yield source[place : place + count]
            start += count


class Handler(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks about the one repository of its server."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a question about the repository, or with a file of it or a range of one."""
        path, repository = unquote(urlsplit(self.path).path), self.server.repository
        about = f"/api/models/{REPOSITORY}"
        if path.startswith(f"{about}/tree/"):
            self._send_json([{"type": "file", "path": name, "size": size, "oid": ""} for name, size in self._sizes()])
        elif path == about or path.startswith(f"{about}/revision/"):
            siblings = [{"rfilename": name, "size": size} for name, size in self._sizes()]
            self._send_json({"id": REPOSITORY, "sha": repository.commit, "siblings": siblings})
        elif path.startswith(f"/{REPOSITORY}/resolve/"):
            self._send_file(path.split("/", 5)[-1])
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, 0)

    def _sizes(self) -> list[tuple[str, int]]:
        repository = self.server.repository
        return [(name, repository.size(name)) for name in (*repository.small, *repository.shards)]

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._send(200, {"Content-Type": "application/json"}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, name: str) -> None:
        repository = self.server.repository
        try:
            size = repository.size(name)
        except KeyError:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, 0)
            return
        told = {"ETag": f'"{repository.commit}-{name}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(size, int(asked[2]) + 1)) if asked else (0, size)
        if asked:
            told["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(206 if asked else 200, told, stop - start)
        if self.command != "HEAD":
            for piece in repository.read(name, start, stop):
                self.wfile.write(piece)

    def _send(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(key, value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    """Serves one repository on this machine alone."""

    daemon_threads = True

    def __init__(self, repository: Repository, port: int) -> None:
        self.repository = repository
        super().__init__(("127.0.0.1", port), Handler)


def serve(repository: Repository, port: int = 0) -> Server:
    """Listen on a port, any free one by default; `serve_forever` answers."""
    return Server(repository, port)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("config", metavar="CONFIG")
@click.option("--layers", type=click.IntRange(min=1), help="Decoder blocks.  [default: as the config says]")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16")
@click.option("--max-shard-size", type=SIZE, default="5GB", metavar="SIZE")
@click.option("--tokenizer", type=click.Path(exists=True, file_okay=False), help="Folder to take a tokenizer from.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: any that is free.")
def main(config: str, layers: int | None, tokenizer: str | None, port: int, **options: Any) -> None:
    """Serve a random checkpoint until Ctrl-C; CONFIG is as for make_checkpoint.py."""
    from pathlib import Path

    try:
        beside: dict[str, Path] = companions(Path(tokenizer or config))
        adapted = adapt(read_config(config), layers, options["dtype"])
        repository = Repository(adapted, {n: p.read_bytes() for n, p in beside.items()}, **options)
        server = serve(repository, port)
    except LlmqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    total = sum(shard.size for shard in repository.shards.values())
    click.echo(f"{format_size(total)} in {len(repository.shards)} files as {REPOSITORY}")
    click.echo(f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
    finally:
        server.server_close()


if __name__ == "__main__":
    main()
