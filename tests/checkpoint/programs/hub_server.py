"""A Hub on the loopback for the real client."""

import hashlib
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves `files` as org/name and `pickles` at `main` and COMMIT; org/gated asks for consent; org/broken fails.

    Weights lie elsewhere, as on the real one: the Hub sends those who ask on to another host, with a signature that is
    good for `uses` requests. `faults` go wrong there, one a request, and `tokens` lists whose token came there.
    """

    protocol_version = "HTTP/1.1"
    faults: ClassVar[list[str]] = []
    tokens: ClassVar[list[str | None]] = []
    ranges: ClassVar[list[str]] = []
    uses: ClassVar[int] = 1 << 30
    signed: ClassVar[dict[str, int]] = {}
    pickles: ClassVar[dict[str, bytes]] = {}
    files: ClassVar[dict[str, bytes]] = {}
    paths: ClassVar[list[str]] = []

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"content_length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.paths.append(f"{self.command} {path}")
        if path.startswith("/elsewhere/"):
            return self.send_range(path.removeprefix("/elsewhere/"), urlsplit(self.path).query.partition("=")[2])
        for repo, status, code in (
            ("org/gated", 403, "GatedRepo"), ("org/absent", 404, "RepoNotFound"), ("org/broken", 500, "Oops"),
        ):  # fmt: skip
            if repo in path:
                return self.answer(status, b"{}", X_Error_Code=code)
        files = self.pickles if "org/pickles" in path else self.files
        known = any(f"/{revision}" in path for revision in ("main", COMMIT, "resolve")) or path.endswith(
            ("org/name", "org/pickles")
        )
        if not known:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        if path.startswith(("/api/models/org/name/tree", "/api/models/org/pickles/tree")):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(200, json.dumps(entries).encode(), content_type="application/json")
        if path.startswith(("/api/models/org/name", "/api/models/org/pickles")):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
                | (
                    {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 100}}
                    if name.endswith(".safetensors")
                    else {}
                )
                for name, data in files.items()
            ]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
            return self.answer(200, body, content_type="application/json")
        name = path.split("/", 5)[-1]
        if name not in files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        data = files[name]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        if not name.endswith(".safetensors"):
            return self.answer(200, data, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        signature = f"{name}-{len(self.signed)}"
        self.signed[signature] = self.uses
        place = f"http://localhost:{self.server.server_port}/elsewhere/{name}?signature={signature}"
        linked = {"X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        return self.answer(302, b"", Location=place, X_Repo_Commit=COMMIT, **linked)

    def send_range(self, name, signature):
        """A range of a file with weights, if the signature is good; or something that is wrong."""
        data, asked = self.files[name], self.headers.get("Range")
        self.tokens.append(self.headers.get("Authorization"))
        self.signed[signature] -= 1
        if self.signed[signature] < 0:
            return self.answer(403, b"<Error>expired</Error>")
        if asked is None:
            return self.answer(200, data)
        self.ranges.append(asked)
        start, stop = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        body, size = data[start : stop + 1], len(data)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "busy":
            return self.answer(503, b"", Retry_After="0")
        if fault == "whole":
            return self.answer(200, data)
        if fault == "other":
            start, body = start + 1, body[1:]
        if fault == "flipped":
            body = bytes([body[0] ^ 1]) + body[1:]
        told = {"Content-Range": f"bytes {start}-{stop}/{size}"}
        if fault != "cut":
            return self.answer(206, body, **told)
        self.close_connection = True
        self.answer(206, body[: len(body) // 2], content_length=str(len(body)), **told)
        return self.wfile.flush()


@contextmanager
def serve():
    """Answer requests, at the address that is given, until the block is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def settings(endpoint, home):
    """Variables of the environment for a process that is to ask this Hub."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": ":".join(sys.path),
    }
