"""Changing outputs as somebody would who knows how checksums are made."""

import hashlib
import json

import llmq
from llmq.checkpoint.sealed import seal


def told(folder, **how):
    """What is wrong, as text."""
    return [str(problem) for problem in llmq.verify(folder, **how).problems]


def rewrite_manifest(folder, change):
    """Change the manifest as somebody would who knows how it is made."""
    manifest = json.loads((folder / "llmq.json").read_text())
    del manifest["sha256"]
    change(manifest)
    (folder / "llmq.json").write_bytes(seal(manifest))


def replace_file(folder, name, data):
    """Change a file, and the manifest's word of it."""
    (folder / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def change_json(folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    replace_file(folder, name, json.dumps(value).encode())
