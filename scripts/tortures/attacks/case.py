"""`Case`: one malformed checkpoint, and what must become of every command that meets it."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.sealed import seal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "INDEX",
    "MODEL",
    "READERS",
    "SHARD",
    "Case",
    "append",
    "edit_json",
    "read_json",
    "replace_header",
    "safetensors",
    "split",
    "write_json",
]

INDEX: Final = "model.safetensors.index.json"
MODEL: Final = "model.safetensors"
SHARD: Final = "model-00002-of-00003.safetensors"

_SEALED: Final = ("llmq.json", "quality.json")

READERS: Final = ("quantize", "inspect", "generate")
"""Commands that read the headers of a checkpoint."""


@dataclass(frozen=True)
class Case:
    """A sound checkpoint that one change makes malformed.

    Parameters
    ----------
    name : str
        ``group: what is wrong``.
    change : callable
        Does it to the folder of a sound checkpoint. ``folder.parent / "outside"`` is a place that nobody may look into.
    codes : mapping of str to int
        Exit code by command; others are not run. A negative one stands for "not a crash": 0, 3 or 4.
    words : tuple of str
        All of these stand in the one line that begins with ``error:``.
    hint : str
        Stands in the line that begins with ``hint:``.
    start : str
        Which sound checkpoint: ``single``, ``sharded``, ``packed`` or ``output``.
    arguments : tuple of str
        More arguments; ``FOLDER`` in them stands for the folder.
    """

    name: str
    change: Callable[[Path], object]
    codes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(READERS, 3))
    words: tuple[str, ...] = ()
    hint: str = ""
    start: str = "single"
    arguments: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """What kind of thing is wrong."""
        return self.name.partition(":")[0]


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, NaN and half surrogates too; a file that carries its own checksum gets the right one."""
    if path.name in _SEALED and isinstance(value, dict):
        with contextlib.suppress(ValueError):
            path.write_bytes(seal({key: item for key, item in value.items() if key != "sha256"}))
            return
    path.write_text(json.dumps(value), "utf-8")


def edit_json(name: str, **fields: Any) -> Callable[[Path], object]:
    """Set fields of a JSON object; `...` takes one away."""

    def change(folder: Path) -> None:
        found = read_json(folder / name) | fields
        write_json(folder / name, {key: value for key, value in found.items() if value is not ...})

    return change


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with any header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def replace_header(edit: Callable[[dict[str, Any]], Any], file: str = MODEL) -> Callable[[Path], object]:
    """Edit the header of a file in place, or return another one, and keep its data."""

    def change(folder: Path) -> None:
        header, data = split((folder / file).read_bytes())
        (folder / file).write_bytes(safetensors(edit(header) or header, data))

    return change


def append(tensors: Mapping[str, tuple[str, list[int], bytes]], file: str = MODEL) -> Callable[[Path], object]:
    """Put tensors (dtype, shape, bytes) behind those of a file; one of a known name takes its place."""

    def change(folder: Path) -> None:
        header, data = split((folder / file).read_bytes())
        found: dict[str, Any] = {"__metadata__": header.pop("__metadata__", {})}
        parts, end = [], 0
        kept = {
            name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()
        }
        for name, (dtype, shape, content) in (kept | dict(tensors)).items():
            found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
            parts.append(content)
            end += len(content)
        (folder / file).write_bytes(safetensors(found, b"".join(parts)))

    return change
