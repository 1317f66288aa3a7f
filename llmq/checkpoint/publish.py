"""Turning finished shards into a checkpoint: the manifest goes last, and whoever sees it sees everything."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.faults import reading
from llmq.checkpoint.index import INDEX_FILE
from llmq.checkpoint.journal import Journal, Scratch
from llmq.checkpoint.layout import ShardLayout, index_of
from llmq.checkpoint.manifest import MANIFEST
from llmq.checkpoint.safe_open import allowed_roots, open_inside
from llmq.checkpoint.sealed import seal
from llmq.system.files import atomic_write, replace, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["FileEntry", "publish_file", "publish_shards", "remove_stale", "write_manifest"]

_BLOCK: Final = 1 << 20

FileEntry = dict[str, Any]
"""``{"size", "sha256"}`` of a file, as the manifest lists it."""


def publish_shards(folder: Path, shards: Sequence[ShardLayout], journal: Journal) -> dict[str, FileEntry]:
    """Move sealed shards into the output folder, and write the index of several.

    An earlier manifest goes first, so that no mixture of old and new is ever taken for a model.
    """
    scratch = Scratch(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)
    if not journal.record.publishing:
        journal.append(publishing=True)
    journal.sync()
    entries: dict[str, FileEntry] = {}
    for shard in shards:
        if scratch.sealed(shard.file).exists():
            replace(scratch.sealed(shard.file), folder / shard.file)
        size, digest = journal.record.sealed[shard.file]
        entries[shard.file] = {"size": size, "sha256": digest}
    if len(shards) > 1:
        entries[INDEX_FILE] = publish_file(folder, INDEX_FILE, json_strict.dumps(index_of(shards)))
    return entries


def publish_file(folder: Path, name: str, content: bytes | Path) -> FileEntry:
    """Write bytes, or copy a file, to `name` in the output, absent or whole whatever happens."""
    path, temporary = folder / name, Scratch(folder).temporary(name)
    if isinstance(content, bytes):
        atomic_write(path, content, temporary=temporary)
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    digest = hashlib.sha256()
    size = 0

    def copied() -> Iterator[bytes]:
        nonlocal size
        for block in _blocks(content):
            digest.update(block)
            size += len(block)
            yield block

    atomic_write(path, copied(), temporary=temporary)
    return {"size": size, "sha256": digest.hexdigest()}


def _blocks(path: Path) -> Iterator[bytes]:
    with reading(path):
        fd, _ = open_inside(path, allowed_roots(path.parent))
    with reading(path), os.fdopen(fd, "rb") as source:
        while block := source.read(_BLOCK):
            yield block


def remove_stale(folder: Path, replaced: Mapping[str, int], kept: Mapping[str, FileEntry]) -> None:
    """Remove what an earlier checkpoint left, unless it was replaced, or someone changed it since."""
    for name, size in replaced.items():
        path = folder / name
        if name not in kept and name == path.name and path.is_file() and path.stat().st_size == size:
            path.unlink()
    sync_folder(folder)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``llmq.json``, with a checksum of its own: from here on the folder is a model."""
    atomic_write(folder / MANIFEST, seal(manifest), temporary=Scratch(folder).temporary(MANIFEST))
