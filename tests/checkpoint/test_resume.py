"""A writer that was stopped anywhere goes on, and ends with the same bytes."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.output_folder import clear_leftovers
from llmq.checkpoint.source import open_source
from llmq.checkpoint.writer import CheckpointWriter, OutputTensor, lay_out
from llmq.errors import InputError, LlmqError, ResourceError


class Killed(BaseException):
    pass


WATCHED = (
    "pwrite",
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "posix_fallocate",
    "open",
    "ftruncate",
    "unlink",
    "mkdir",
    "rmdir",
)


class Faults:
    """Counts the system calls that change the disk, and lets one of them, or all from it on, fail."""

    def __init__(self, monkeypatch, at: int, error: BaseException, *, forever: bool) -> None:
        self.count = 0
        for name in WATCHED:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), at, error, forever))

    def _wrap(self, call, at, error, forever):
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count == at or (forever and self.count > at):
                raise error
            return call(*args, **kwargs)

        return wrapped


def interrupted(example, folder, copies, at, error, *, forever, **flags) -> bool:
    """Run with a fault; whether it was met."""
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, at, error, forever=forever)
        try:
            example.run(folder, copies, **flags)
        except (Killed, LlmqError):
            assert faults.count >= at
        return faults.count >= at


def finish(example, folder, copies, **flags) -> None:
    if read_manifest(folder) is None or flags:
        example.run(folder, copies, **flags)
    else:
        clear_leftovers(folder)


@pytest.mark.parametrize("kind", ["killed", "full once", "failing for ever"])
def test_a_fault_at_every_system_call(example, tmp_path, copies, expected, kind):
    error = {"killed": Killed(), "full once": OSError(errno.ENOSPC, "full")}.get(kind, OSError(errno.EIO, "broken"))
    at = 1
    while interrupted(example, tmp_path / f"out{at}", copies, at, error, forever=kind != "full once"):
        out = tmp_path / f"out{at}"
        if (out / "llmq.json").exists():
            assert example.snapshot(out) == expected
        finish(example, out, copies)
        assert example.snapshot(out) == expected
        assert not (out / ".llmq").exists()
        at += 1
    assert at > 80


def test_a_fault_at_every_system_call_while_replacing(example, tmp_path, copies, expected):
    old = [OutputTensor(f"old{n}", "U8", (900,)) for n in range(4)]
    at = 1
    met = True
    while met:
        out = tmp_path / f"out{at}"
        with CheckpointWriter(out, lay_out(old, 900), identity={"settings": "old"}) as writer:
            for tensor in old:
                writer.write(tensor.name, bytes(900))
            writer.commit({}, {"merges.txt": copies["tokenizer.json"]})
        (out / "mine.txt").write_text("mine")
        before = example.snapshot(out)
        met = interrupted(example, out, copies, at, Killed(), forever=True, overwrite=True)
        now = example.snapshot(out)
        if "llmq.json" in now and met:
            assert now in (before, expected | {"mine.txt": b"mine"})
        if now.get("llmq.json") == expected["llmq.json"]:
            clear_leftovers(out)
        else:
            example.run(out, copies, overwrite=True)
        assert example.snapshot(out) == expected | {"mine.txt": b"mine"}
        assert not (out / ".llmq").exists()
        at += 3


def stop_at(example, stop, out) -> None:
    with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
        for number, (name, data) in enumerate(example.pieces()):
            if number == stop:
                raise KeyboardInterrupt
            writer.write(name, data)


def test_an_exception_at_every_write(example, tmp_path, copies, expected):
    total = len(list(example.pieces()))
    for stop in range(total):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            stop_at(example, stop, out)
        assert example.snapshot(out) == {}
        with pytest.raises(InputError, match="unfinished output"):
            open_source(out)
        completed = example.run(out, copies)
        assert len(completed) >= 1
        assert example.snapshot(out) == expected
    assert len(completed) == len(example.arrays) - 1


def test_damaged_scratch_is_not_trusted(example, tmp_path, copies, expected):
    def start(out):
        with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
            for name, data in list(example.pieces())[:-1]:
                writer.write(name, data)

    def flip(path):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))

    damages = {
        "flipped bit in an open shard": lambda s: flip(next((s / "tmp").glob("*.part"))),
        "cut journal line": lambda s: os.truncate(s / "journal.jsonl", (s / "journal.jsonl").stat().st_size - 3),
        "rubbish in the journal": lambda s: (s / "journal.jsonl").write_bytes(
            b"\xff\n" + (s / "journal.jsonl").read_bytes()
        ),
        "no journal": lambda s: (s / "journal.jsonl").unlink(),
        "cut shard": lambda s: os.truncate(next((s / "tmp").glob("*.part")), 100),
        "long shard": lambda s: os.truncate(next((s / "tmp").glob("*.part")), 10**6),
        "cut sealed shard": lambda s: os.truncate(s / "tmp" / example.shards[0].file, 100),
        "lost sealed shard": lambda s: (s / "tmp" / example.shards[0].file).unlink(),
        "cut plan": lambda s: os.truncate(s / "plan.json", 10),
        "no shards": lambda s: [path.unlink() for path in (s / "tmp").iterdir()],
    }
    for name, damage in damages.items():
        out = tmp_path / name
        start(out)
        damage(out / ".llmq")
        example.run(out, copies)
        assert example.snapshot(out) == expected, name


def test_a_lost_shard_is_not_resumed_twice(example, tmp_path, copies, expected):
    """The journal still calls it sealed while it is being written again."""
    out = tmp_path / "out"
    for _ in range(3):
        with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
            for name, data in list(example.pieces())[:-1]:
                if name not in writer.completed:
                    writer.write(name, data)
        (out / ".llmq/tmp" / example.shards[0].file).unlink()
        with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
            writer.write("a.weight_packed", bytes(100))
    example.run(out, copies)
    assert example.snapshot(out) == expected


def test_no_room(example, tmp_path, copies, expected):
    import resource

    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(ResourceError, match="cannot be written: File too large") as error:
            example.run(out, copies)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "goes on where it stopped" in error.value.hint
    example.run(out, copies)
    assert example.snapshot(out) == expected


def test_full_disk(example, tmp_path, copies, expected):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        ballast = disk / "ballast"
        for size in range(60, 0, -4):
            ballast.write_bytes(bytes(size * 1024))
            try:
                example.run(disk / "out", copies)
                break
            except ResourceError as error:
                assert "No space left" in str(error)  # noqa: PT017
                assert not (disk / "out/llmq.json").exists()
        else:
            pytest.fail("never enough room")
        assert example.snapshot(disk / "out") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


CHILD = """
import sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import conftest_child as t
t.PIECE = 16
fast = t.pieces
t.pieces = lambda: ((time.sleep(0.0005), piece)[1] for piece in fast())
try:
    t.run(Path(sys.argv[1]), {"tokenizer.json": Path(sys.argv[2])}, overwrite=True)
except BaseException as error:
    print(repr(error), flush=True)
    raise
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_for_real(example, tmp_path, copies, expected):
    (tmp_path / "conftest_child.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(out), str(copies["tokenizer.json"]), str(tmp_path), *sys.path]
    random.seed(7)
    for _ in range(4):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 20
        while not (out / ".llmq/journal.jsonl").exists() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.2))
        child.kill()
        output, _ = child.communicate()
        assert output == ""
        if (out / "llmq.json").exists():
            assert example.snapshot(out) == expected
            clear_leftovers(out)
            (out / "llmq.json").unlink()
    example.run(out, copies, overwrite=True)
    assert example.snapshot(out) == expected
    assert not (out / ".llmq").exists()
