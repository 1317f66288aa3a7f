"""The scratch folder of an unfinished output: its plan, and a journal of what has been written.

OUT/.llmq/lock             held while a run writes
OUT/.llmq/plan.json        what the run makes of what (`identity`, the layout's digest, files it will replace)
OUT/.llmq/journal.jsonl    {"tensor", "file", "sha256"}          written, not yet surely on the disk
                           {"source", "xxh3_128"}                of a source tensor, read whole before its last byte
                                                                 was written
                           {"sealed", "size", "sha256"}          a whole shard, on the disk
                           {"publishing": true}                  shards are being moved into OUT
                           and "crc32" in each line, of the line without it
OUT/.llmq/tmp/*.part       shards being written, and without .part sealed ones; *.new other files
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmq.checkpoint import json_strict
from llmq.checkpoint.index import SCRATCH
from llmq.errors import InputError
from llmq.system.files import atomic_write, pwrite, sync_data, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Journal", "Record", "Scratch", "read_record"]

_CHECKSUM = "crc32"


@dataclass
class Record:
    """What a journal says.

    Parameters
    ----------
    tensors : dict
        SHA-256 by tensor name.
    sources : dict
        XXH3-128 of the source's tensors, by name.
    sealed : dict
        ``(size, sha256)`` by shard name.
    publishing : bool
        Whether shards may have been moved into the output folder.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    sealed: dict[str, tuple[int, str]] = field(default_factory=dict)
    publishing: bool = False

    def add(self, line: Any) -> bool:
        """Take one line in; False if it is none of ours."""
        match line:
            case {"tensor": str(name), "sha256": str(digest)}:
                self.tensors[name] = digest
            case {"source": str(name), "xxh3_128": str(digest)}:
                self.sources[name] = digest
            case {"sealed": str(name), "size": int(size), "sha256": str(digest)}:
                self.sealed[name] = (size, digest)
            case {"publishing": True}:
                self.publishing = True
            case _:
                return False
        return True


class Scratch:
    """The paths of an output folder's scratch."""

    def __init__(self, output: Path) -> None:
        self.folder = output / SCRATCH
        self.lock = self.folder / "lock"
        self.plan = self.folder / "plan.json"
        self.journal = self.folder / "journal.jsonl"
        self.shards = self.folder / "tmp"

    def part(self, file: str) -> Path:
        """Return the path of a shard being written."""
        return self.shards / f"{file}.part"

    def sealed(self, file: str) -> Path:
        """Return the path of a shard that is whole and on the disk."""
        return self.shards / file

    def temporary(self, file: str) -> Path:
        """Return the path where a file other than a shard is written before it is published."""
        return self.shards / f"{file}.new"

    def read_plan(self) -> dict[str, Any] | None:
        """Return the plan of an earlier run; None where there is none, or nothing came of it."""
        try:
            plan = json_strict.loads(self.plan.read_bytes(), self.plan)
        except (FileNotFoundError, InputError):
            return None
        return plan if isinstance(plan, dict) else None

    def begin(self, plan: dict[str, Any]) -> None:
        """Discard what an earlier run left, and write the plan of this one."""
        # The plan goes first: without one the rest counts for nothing.
        for path in (self.plan, self.journal):
            path.unlink(missing_ok=True)
        sync_folder(self.folder)
        shutil.rmtree(self.shards, ignore_errors=True)
        self.shards.mkdir(exist_ok=True)
        atomic_write(self.plan, json_strict.dumps(plan), temporary=self.temporary("plan.json"))

    def remove(self) -> None:
        """Remove everything; the lock may still be held."""
        self.plan.unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        sync_folder(self.folder.parent)


def read_record(path: Path) -> Record:
    """Read what a journal says, changing nothing, so without the lock too; an absent one says nothing."""
    try:
        return _replay(path.read_bytes())[0]
    except FileNotFoundError:
        return Record()


def _replay(data: bytes) -> tuple[Record, int]:
    """Take in all sound lines: the record, and where they end in bytes."""
    record = Record()
    end = 0
    for line in data.splitlines(keepends=True):
        content = _content(line)
        if content is None or not record.add(content):
            break
        end += len(line)
    return record, end


def _line(content: dict[str, Any]) -> bytes:
    checksum = zlib.crc32(json.dumps(content).encode("ascii"))
    return json.dumps(content | {_CHECKSUM: checksum}).encode("ascii") + b"\n"


def _content(line: bytes) -> dict[str, Any] | None:
    """What `_line` was given; None where the line is not exactly what it made."""
    try:
        content = json.loads(line)
        del content[_CHECKSUM]
        return content if line == _line(content) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Journal:
    """An append-only file of JSON lines, for whoever holds the lock.

    A line cut off by a crash or damaged, and all behind it, counts for nothing, and is cut off when the file is opened.

    Attributes
    ----------
    record : Record
        What it said when it was opened, and what was added since.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self.record, self._end = _replay(path.read_bytes())
            os.ftruncate(self._fd, self._end)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, **line: Any) -> None:
        """Add a line; it survives the process, and after `sync` the machine."""
        data = _line(line)
        pwrite(self._fd, memoryview(data), self._end)
        self._end += len(data)
        assert self.record.add(line)

    def sync(self) -> None:
        """Return once every line is on the disk."""
        sync_data(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
