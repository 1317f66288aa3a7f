"""``quality.json``: what was measured of a finished output, beside its weights."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.faults import writing
from llmq.checkpoint.manifest import MANIFEST, read_manifest, source_headers
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.checkpoint.sealed import check_seal, seal
from llmq.errors import InputError, UsageError
from llmq.system.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CERTIFICATE",
    "add_comparison",
    "add_evaluation",
    "check_certifiable",
    "check_certificate",
    "read_certificate",
]

CERTIFICATE: Final = "quality.json"
SCHEMA: Final = 1

_log = logging.getLogger("llmq")

_SAME: Final = ("base", "text_sha256", "context", "tokens", "compute", "kv_bits")
"""An evaluation takes the place of an earlier one in which all these are the same."""


def read_certificate(folder: Path) -> dict[str, Any] | None:
    """Return what was measured of the weights in a folder.

    Returns
    -------
    dict or None
        `manifest_sha256`, of the manifest that the figures belong to; `source` and `recipe`, as the manifest has them;
        `nmse`, `sqnr_db` and `tensors` of `llmq compare`, the first two None where it has not run; `evaluations`, a
        list of what `llmq eval` found. None where there is no certificate; where it is malformed or belongs to other
        weights, a warning tells so.
    """
    if not (folder / CERTIFICATE).exists():
        return None
    try:
        found = _read(folder)
    except InputError as error:
        _log.warning("%s: it is ignored", error)
        return None
    if not (folder / MANIFEST).exists() or found["manifest_sha256"] != _digest(folder):
        _log.warning("%s belongs to other weights than those beside it, and is ignored", folder / CERTIFICATE)
        return None
    return found


def check_certificate(folder: Path) -> None:
    """Raise InputError unless the certificate of a folder is sound, and of the weights beside it."""
    if _read(folder)["manifest_sha256"] != _digest(folder):
        raise InputError("belongs to other weights than those beside it", file=folder / CERTIFICATE)


def check_certifiable(model: str | Path, *, source: Mapping[str, Any] | None = None) -> Path:
    """Return the folder of a finished output whose certificate can be written.

    Parameters
    ----------
    model : str or Path
        As a user names it.
    source : mapping, optional
        Identity of what it is said to have been made from.

    Raises
    ------
    UsageError
        No folder here, no output of llmq, one that cannot be written to, one made from something else, or one that
        holds another file of that name.
    InputError, UnsupportedError
        Its manifest is malformed, or written by a newer version.
    """
    folder = Path(model)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        hint = "quality is saved beside what `llmq quantize` wrote; leave --save out"
        raise UsageError("not a finished output of llmq in a local folder", file=folder, hint=hint)
    if not os.access(folder, os.W_OK):
        raise UsageError("cannot be written to", file=folder, hint="leave --save out")
    if source is not None and source_headers(manifest.get("source")) != source_headers(source):
        raise UsageError("was not made from this source", file=folder, hint="leave --save out")
    if (folder / CERTIFICATE).exists():
        try:
            _read(folder)
        except InputError:
            raise UsageError(
                "there is another file of this name",
                file=folder / CERTIFICATE,
                hint="move it away, or leave --save out",
            ) from None
    return folder


def add_comparison(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Keep the object of `llmq compare --json` beside the weights that it is of.

    Raises
    ------
    ResourceError, UsageError
        It cannot be written; nothing has changed then.
    """
    found = _current(folder)
    _write(folder, found | {key: comparison[key] for key in ("nmse", "sqnr_db", "tensors")})


def add_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Keep the object of `llmq eval --json` beside its weights, instead of an earlier one of the same text.

    Raises
    ------
    ResourceError, UsageError
        It cannot be written; nothing has changed then.
    """
    found = _current(folder)
    mine = _key(evaluation)
    others = [earlier for earlier in found["evaluations"] if _key(earlier) != mine]
    _write(folder, found | {"evaluations": [*others, dict(evaluation)]})


def _key(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(evaluation.get(name) for name in _SAME)


def _current(folder: Path) -> dict[str, Any]:
    """What stands there, or the beginning of a certificate of these weights."""
    digest = _digest(folder)
    found = _read(folder) if (folder / CERTIFICATE).exists() else None
    if found is not None and found["manifest_sha256"] == digest:
        return found
    manifest = read_manifest(folder) or {}
    return {
        "schema": SCHEMA,
        "manifest_sha256": digest,
        "source": manifest.get("source"),
        "recipe": manifest.get("settings"),
        "nmse": None,
        "sqnr_db": None,
        "tensors": [],
        "evaluations": [],
    }


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CERTIFICATE
    data = read_small(path, allowed_roots(folder))
    found = json_strict.loads(data, path)
    sound = (
        isinstance(found, dict)
        and found.get("schema") == SCHEMA
        and isinstance(found.get("manifest_sha256"), str)
        and all(_are_objects(found.get(name)) for name in ("tensors", "evaluations"))
    )
    if not sound:
        raise InputError("not a certificate that this version of llmq wrote", file=path)
    check_seal(data, path)
    return {key: value for key, value in found.items() if key != "sha256"}


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _write(folder: Path, certificate: Mapping[str, Any]) -> None:
    data = seal(json_strict.without_infinity(dict(certificate)))
    with writing(folder / CERTIFICATE):
        atomic_write(folder / CERTIFICATE, data)


def _digest(folder: Path) -> str:
    return hashlib.sha256(read_small(folder / MANIFEST, allowed_roots(folder))).hexdigest()
