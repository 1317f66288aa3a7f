"""JSON files that carry a checksum of themselves, so that a flipped bit anywhere in them is noticed."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_seal", "seal"]

_KEY: Final = "sha256"
_BLANK: Final = "0" * 64
_END: Final = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')


def seal(value: Mapping[str, Any]) -> bytes:
    """Encode an object, with ``sha256`` as its last entry: that of the file with zeros in the checksum's place.

    >>> print(seal({"schema": 1}).decode())
    {
      "schema": 1,
      "sha256": "5abd7576b22e9e499bdc31d6ced30cac69e3bcb81443708e3dea21c5408a10b5"
    }
    <BLANKLINE>
    """
    assert _KEY not in value
    data = json_strict.dumps(dict(value) | {_KEY: _BLANK})
    return _with_checksum(data, hashlib.sha256(data).hexdigest())


def check_seal(data: bytes, file: object, *, hint: str | None = None) -> None:
    """Raise InputError, naming `file`, unless a file is what `seal` made."""
    found = _END.search(data)
    if found is None:
        raise InputError("damaged: its own checksum is missing", file=file, hint=hint)
    stored = found[1].decode("ascii")
    actual = hashlib.sha256(_with_checksum(data, _BLANK)).hexdigest()
    if actual != stored:
        what = "damaged: not what its own checksum says"
        raise InputError(what, file=file, expected=stored, found=actual, hint=hint)


def _with_checksum(data: bytes, digest: str) -> bytes:
    """`data`, which ends in a checksum, with another in its place."""
    end = len(data) - len(b'"\n}\n')
    return data[: end - len(digest)] + digest.encode("ascii") + data[end:]
