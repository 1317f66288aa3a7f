"""``llmq.json``, written last: a folder that holds one is a finished output."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import is_card
from llmq.checkpoint.safe_open import allowed_roots, open_inside, read_small
from llmq.checkpoint.sealed import check_seal
from llmq.errors import InputError, UnsupportedError

__all__ = ["MANIFEST", "SCHEMA", "difference", "parse_manifest", "read_manifest", "source_headers"]

MANIFEST: Final = "llmq.json"
SCHEMA: Final = 1

_AGAIN: Final = "make it again with `llmq quantize --overwrite`"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished output, its files present and of the right size; contents are not read.

    Returns
    -------
    dict or None
        None where there is no manifest: not one of our outputs, or an unfinished one.

    Raises
    ------
    InputError
        A malformed manifest; files missing, or of another size.
    UnsupportedError
        Written by a newer version.
    """
    if not (folder / MANIFEST).exists():
        return None
    roots = allowed_roots(folder)
    manifest = parse_manifest(read_small(folder / MANIFEST, roots), folder / MANIFEST)
    for name, entry in manifest["files"].items():
        if not is_card(name):
            _check_size(folder, name, entry["size"], roots)
    return manifest


def parse_manifest(data: bytes, file: Path) -> dict[str, Any]:
    """Parse a manifest, its own checksum and all its entries sound; no file is looked at.

    Raises
    ------
    InputError
        Malformed or damaged; `file` is named.
    UnsupportedError
        Written by a newer version.
    """
    manifest = json_strict.loads(data, file)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise InputError("not a manifest of llmq", file=file, hint=_AGAIN)
    if schema != SCHEMA:
        raise UnsupportedError(
            "written by another version of llmq", file=file, expected=f"schema {SCHEMA}", found=schema
        )
    check_seal(data, file, hint=_AGAIN)
    files, tensors = manifest.get("files"), manifest.get("tensors")
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        raise InputError("lists no files or no tensors", file=file, hint=_AGAIN)
    for name, entry in files.items():
        plain = name == Path(name).name and name not in ("", ".", "..") and not set(name) & set("/\\:\0")
        if not plain or not _has_digest(entry) or type(entry.get("size")) is not int:
            raise InputError("malformed entry", file=file, found=repr(name)[:80], hint=_AGAIN)
    for name, entry in tensors.items():
        holder = entry.get("file") if isinstance(entry, dict) else None
        if not _has_digest(entry) or not isinstance(holder, str) or holder not in files:
            raise InputError("malformed entry", file=file, tensor=name, hint=_AGAIN)
    return dict(manifest)


def _has_digest(entry: Any) -> bool:
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    return isinstance(digest, str) and _SHA256.fullmatch(digest) is not None


def _check_size(folder: Path, name: str, expected: int, roots: tuple[Path, ...]) -> None:
    fd, signature = open_inside(folder / name, roots)
    os.close(fd)
    if signature.size != expected:
        raise InputError(
            "not as llmq wrote it",
            file=folder / name,
            expected=f"{expected} bytes",
            found=f"{signature.size} bytes",
            hint=_AGAIN,
        )


def source_headers(identity: Any) -> set[str]:
    """Digests of the headers of a source's files, by its identity: copies of a source share them."""
    files = identity.get("files") if isinstance(identity, dict) else None
    entries = files.values() if isinstance(files, dict) else ()
    return {str(entry.get("header")) for entry in entries if isinstance(entry, dict)}


def difference(expected: Any, found: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Find the first field in which two JSON-like values differ: ``(dotted path, expected, found)``, or None.

    >>> difference({"settings": {"bits": 4}}, {"settings": {"bits": 8}})
    ('settings.bits', 4, 8)
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in (*expected, *(key for key in found if key not in expected)):
            inner = difference(expected.get(key), found.get(key), f"{path}.{key}" if path else str(key))
            if inner:
                return inner
        return None
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            inner = difference(one, other, f"{path}[{number}]")
            if inner:
                return inner
        return None
    return None if type(expected) is type(found) and expected == found else (path, expected, found)
