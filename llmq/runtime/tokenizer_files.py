"""The files of a tokenizer, taken into a folder of our own before a library reads them.

Libraries open what a folder and its files name: links, pipes, other paths, modules. In a copy there is none of that,
and nobody changes it meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import TOKENIZER_FILES
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.errors import InputError, ResourceError, first_line
from llmq.runtime.confined import Confined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["probed", "taken"]

_CONFIG: Final = "config.json"
_SETTINGS: Final = "tokenizer_config.json"
_TAKEN: Final = (*TOKENIZER_FILES, "tokenizer.model*", "*.model", "tekken.json")
_STRICT: Final = frozenset({_SETTINGS, "special_tokens_map.json", "added_tokens.json", "chat_template.json"})
"""JSON that is small, and read strictly; of the others the library makes what it can."""

_OF_THE_MODEL: Final = ("model_type", "tokenizer_class", "transformers_version")
"""What the choice of a tokenizer needs of ``config.json``; sizes would have the library build lists of that length."""

_NAMES_OTHERS: Final = re.compile(
    r"auto_map|.*_files?|init_inputs|name_or_path|subfolder|cache_dir|revision|token|proxies|is_local|local_files_only"
    r"|trust_remote_code|_.*|self|cls"
)
"""Settings that name files or code, or what the library passes by itself."""

_MOST_MERGES: Final = 2_000_000
"""Each is a list of two; large vocabularies have half a million."""

_SECONDS: Final = 10.0
_MEMORY: Final = 2 << 30
_MOST_TOKENS: Final = 10_000
"""That a text of a few hundred characters may become."""


@contextlib.contextmanager
def taken(folder: Path) -> Iterator[Path]:
    """A folder with copies of a tokenizer's files, there for as long as the block.

    Raises
    ------
    InputError
        A file that is no regular one, leads out of `folder`, is too long, or is malformed.
    ResourceError
        There is no room for the copies.
    """
    roots = allowed_roots(folder)
    try:
        with tempfile.TemporaryDirectory(prefix="llmq-tokenizer-") as place:
            for name in sorted(path.name for path in folder.iterdir()):
                if name == _CONFIG or any(fnmatchcase(name, pattern) for pattern in _TAKEN):
                    data = _sound(name, read_small(folder / name, roots))
                    (Path(place) / name).write_bytes(data)
            yield Path(place)
    except OSError as error:
        where = tempfile.gettempdir() if error.filename is None else os.fsdecode(error.filename)
        raise ResourceError(
            f"cannot be copied there: {error.strerror}", file=where, hint="set TMPDIR to a folder with some room"
        ) from error


@contextlib.contextmanager
def probed(file: Path) -> Iterator[Callable[[], None]]:
    """Have a process of its own try a ``tokenizer.json``, which could take this one with it.

    Yields
    ------
    callable
        Waits for what came of it, and raises InputError where the library crashed, or took too much time or memory.
        What it merely refuses, it will refuse here too. Where no process can be started, nothing is tried.
    """
    sandbox = None
    if file.exists():
        with contextlib.suppress(OSError):
            task = {"file": str(file), "tokens": _MOST_TOKENS}
            sandbox = Confined("tokenizer", task, seconds=_SECONDS, memory=_MEMORY, most=10_000)

    def check() -> None:
        reply = {} if sandbox is None else sandbox.reply()
        fatal = reply.get("panic") or "ended" in reply or "too much" in str(reply.get("error"))
        if fatal:
            why = first_line(ValueError(reply["error"]))[:200]
            raise InputError(f"the tokenizer cannot be used: {why}", file=file.name)
        if reply.get("most", 0) > _MOST_TOKENS:
            raise InputError("a few words become too many tokens", file=file.name, found=reply["most"])

    try:
        yield check
    finally:
        if sandbox is not None:
            sandbox.close()


def _sound(name: str, data: bytes) -> bytes:
    """Content of a file as the library gets to see it."""
    if name == _CONFIG:
        found = _object(name, data)
        return json_strict.dumps({key: found[key] for key in _OF_THE_MODEL if isinstance(found.get(key), str)})
    if name == _SETTINGS:
        found = _object(name, data)
        return json_strict.dumps({key: value for key, value in found.items() if not _NAMES_OTHERS.fullmatch(key)})
    if name in _STRICT:
        _object(name, data)
    elif name.endswith(".json"):
        json_strict.check_extent(data, name, containers=_MOST_MERGES)
    return data


def _object(name: str, data: bytes) -> dict[str, Any]:
    found = json_strict.loads(data, name)
    if not isinstance(found, dict):
        raise InputError("not a JSON object", file=name)
    return found
