import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.output_folder import clear_leftovers, refuse_same_folder
from llmq.checkpoint.source import open_source
from llmq.checkpoint.writer import CheckpointWriter, OutputTensor, lay_out
from llmq.errors import InputError, LlmqError, ResourceError, UnsupportedError, UsageError

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight_packed": RNG.integers(0, 2**31, (40, 9), np.int32),
    "a.weight_scale": RNG.standard_normal((40, 3)).astype("bfloat16"),
    "a.weight_shape": np.array([40, 72]),
    "empty": np.zeros((0, 3), np.float32),
    "b.weight": RNG.standard_normal((17, 5)).astype(np.float16),
    "c.weight": RNG.standard_normal(33).astype(np.float32),
    "d": RNG.integers(0, 255, 1001, np.uint8),
}
CODES = {"int32": "I32", "bfloat16": "BF16", "int64": "I64", "float32": "F32", "float16": "F16", "uint8": "U8"}
PLANNED = [OutputTensor(name, CODES[str(array.dtype)], array.shape) for name, array in ARRAYS.items()]
SHARDS = lay_out(PLANNED, 1500)
IDENTITY = {"settings": {"bits": 4, "group": [1, 2]}, "source": {"x": 1}}
PIECE = 400


def pieces():
    """`(name, bytes)` in an order where tensors grow by turns."""
    rest = {name: memoryview(array.tobytes()) for name, array in ARRAYS.items()}
    while rest:
        for name in list(rest)[:2]:
            if len(rest[name]):
                yield name, rest[name][:PIECE]
            rest[name] = rest[name][PIECE:]
            if not len(rest[name]):
                del rest[name]


def run(folder: Path, copies: dict[str, Path], **flags) -> frozenset[str]:
    with CheckpointWriter(folder, SHARDS, identity=IDENTITY, **flags) as writer:
        for name, data in pieces():
            if name not in writer.completed:
                writer.write(name, data)
        writer.commit({"model_type": "llama"}, copies, {"note": "é", "tensors": {"d": {"bits": 8}}})
    return writer.completed


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def copies(tmp_path):
    (tmp_path / "tokenizer").write_text("{}")
    return {"tokenizer.json": tmp_path / "tokenizer"}


@pytest.fixture
def expected(tmp_path, copies):
    run(tmp_path / "expected", copies)
    return snapshot(tmp_path / "expected")


def test_what_is_written(tmp_path, copies):
    out = tmp_path / "deep/out"
    old = os.umask(0o027)
    try:
        assert run(out, copies) == {"empty"}
    finally:
        os.umask(old)
    assert len(SHARDS) == 3
    for shard in SHARDS:
        with safe_open(out / shard.file, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for tensor in shard.tensors:
                np.testing.assert_array_equal(file.get_tensor(tensor.name), ARRAYS[tensor.name])
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}
    names = {"config.json", "llmq.json", "tokenizer.json", "model.safetensors.index.json"} | {s.file for s in SHARDS}
    assert {path.name for path in out.iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    with open_source(out) as source:
        assert set(source.tensors) == set(ARRAYS)


def test_manifest(tmp_path, copies):
    import hashlib

    out = tmp_path / "out"
    run(out, copies)
    manifest = read_manifest(out)
    assert list(manifest)[:2] == ["schema", "llmq_version"]
    assert manifest["settings"] == IDENTITY["settings"]
    assert manifest["note"] == "é"
    assert manifest["tensors"]["d"]["bits"] == 8
    for name, array in ARRAYS.items():
        assert manifest["tensors"][name]["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    assert set(manifest["files"]) == {path.name for path in out.iterdir()} - {"llmq.json"}
    for name, entry in manifest["files"].items():
        content = (out / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_one_shard_and_none_at_all(tmp_path):
    for number, planned in enumerate(([OutputTensor("x", "U8", (3,))], [OutputTensor("x", "U8", (0,))], [])):
        out = tmp_path / str(number)
        with CheckpointWriter(out, lay_out(planned, 10), identity={}) as writer:
            if planned and planned[0].nbytes:
                writer.write("x", b"abc")
            writer.commit(None, {}, {})
        assert sorted(path.name for path in out.iterdir()) == ["llmq.json", "model.safetensors"]
        with safe_open(out / "model.safetensors", "np") as file:
            assert len(file.keys()) == len(planned)


def test_arrays_and_bytes(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    shards = lay_out([OutputTensor("x", "F32", (2, 3)), OutputTensor("y", "BF16", ())], 100)
    with CheckpointWriter(tmp_path / "out", shards, identity={}) as writer:
        for bad in (value.T, value.astype(">f4"), value[:, ::2]):
            with pytest.raises(ValueError, match="C-contiguous and little-endian"):
                writer.write("x", bad)
        writer.write("x", value[:1])
        with pytest.raises(ValueError, match="only 24 bytes"):
            writer.write("x", bytes(13))
        with pytest.raises(KeyError):
            writer.write("z", b"")
        with pytest.raises(ValueError, match="2 tensors are not complete, such as 'x'"):
            writer.commit(None, {}, {})
        writer.write("x", bytearray(value[1:].tobytes()))
        with pytest.raises(ValueError, match="only 24 bytes"):
            writer.write("x", b"1")
        writer.write("y", np.array(1.5, "bfloat16"))
        with pytest.raises(ValueError, match="complete"):
            writer.write("y", b"1")
        for name in ("config.json", "llmq.json", "model.safetensors", "../x", "a/b"):
            with pytest.raises(ValueError, match="plain names of their own"):
                writer.commit(None, {name: tmp_path}, {})
        writer.commit(None, {}, {})
    with pytest.raises(ValueError, match="not open"):
        writer.write("x", b"")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("x"), value)
        assert file.get_tensor("y") == 1.5


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


def interrupted(folder, copies, at, error, *, forever, **flags) -> bool:
    """Run with a fault; whether it was met."""
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, at, error, forever=forever)
        try:
            run(folder, copies, **flags)
        except (Killed, LlmqError):
            assert faults.count >= at
        return faults.count >= at


def finish(folder, copies, **flags) -> None:
    if read_manifest(folder) is None or flags:
        run(folder, copies, **flags)
    else:
        clear_leftovers(folder)


@pytest.mark.parametrize("kind", ["killed", "full once", "failing for ever"])
def test_a_fault_at_every_system_call(tmp_path, copies, expected, kind):
    error = {"killed": Killed(), "full once": OSError(errno.ENOSPC, "full")}.get(kind, OSError(errno.EIO, "broken"))
    at = 1
    while interrupted(tmp_path / f"out{at}", copies, at, error, forever=kind != "full once"):
        out = tmp_path / f"out{at}"
        if (out / "llmq.json").exists():
            assert snapshot(out) == expected
        finish(out, copies)
        assert snapshot(out) == expected
        assert not (out / ".llmq").exists()
        at += 1
    assert at > 80


def test_a_fault_at_every_system_call_while_replacing(tmp_path, copies, expected):
    old = [OutputTensor(f"old{n}", "U8", (900,)) for n in range(4)]
    at = 1
    met = True
    while met:
        out = tmp_path / f"out{at}"
        with CheckpointWriter(out, lay_out(old, 900), identity={"settings": "old"}) as writer:
            for tensor in old:
                writer.write(tensor.name, bytes(900))
            writer.commit({}, {"merges.txt": copies["tokenizer.json"]}, {})
        (out / "mine.txt").write_text("mine")
        before = snapshot(out)
        met = interrupted(out, copies, at, Killed(), forever=True, overwrite=True)
        now = snapshot(out)
        if "llmq.json" in now and met:
            assert now in (before, expected | {"mine.txt": b"mine"})
        if now.get("llmq.json") == expected["llmq.json"]:
            clear_leftovers(out)
        else:
            run(out, copies, overwrite=True)
        assert snapshot(out) == expected | {"mine.txt": b"mine"}
        assert not (out / ".llmq").exists()
        at += 3


def stop_at(stop, out) -> None:
    with CheckpointWriter(out, SHARDS, identity=IDENTITY) as writer:
        for number, (name, data) in enumerate(pieces()):
            if number == stop:
                raise KeyboardInterrupt
            writer.write(name, data)


def test_an_exception_at_every_write(tmp_path, copies, expected):
    total = len(list(pieces()))
    for stop in range(total):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            stop_at(stop, out)
        assert snapshot(out) == {}
        with pytest.raises(InputError, match="unfinished output"):
            open_source(out)
        completed = run(out, copies)
        assert len(completed) >= 1
        assert snapshot(out) == expected
    assert len(completed) == len(ARRAYS) - 1


def test_damaged_scratch_is_not_trusted(tmp_path, copies, expected):
    def start(out):
        with CheckpointWriter(out, SHARDS, identity=IDENTITY) as writer:
            for name, data in list(pieces())[:-1]:
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
        "cut sealed shard": lambda s: os.truncate(s / "tmp" / SHARDS[0].file, 100),
        "lost sealed shard": lambda s: (s / "tmp" / SHARDS[0].file).unlink(),
        "cut plan": lambda s: os.truncate(s / "plan.json", 10),
        "no shards": lambda s: [path.unlink() for path in (s / "tmp").iterdir()],
    }
    for name, damage in damages.items():
        out = tmp_path / name
        start(out)
        damage(out / ".llmq")
        run(out, copies)
        assert snapshot(out) == expected, name


def test_a_lost_shard_is_not_resumed_twice(tmp_path, copies, expected):
    """The journal still calls it sealed while it is being written again."""
    out = tmp_path / "out"
    for _ in range(3):
        with CheckpointWriter(out, SHARDS, identity=IDENTITY) as writer:
            for name, data in list(pieces())[:-1]:
                if name not in writer.completed:
                    writer.write(name, data)
        (out / ".llmq/tmp" / SHARDS[0].file).unlink()
        with CheckpointWriter(out, SHARDS, identity=IDENTITY) as writer:
            writer.write("a.weight_packed", bytes(100))
    run(out, copies)
    assert snapshot(out) == expected


def test_other_settings_are_refused_by_name(tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(out, SHARDS, identity=IDENTITY | {"settings": {"bits": 8, "group": [1, 2]}}) as writer:
        writer.write(*next(pieces()))
    with pytest.raises(UsageError, match=r"another identity\.settings\.bits is there \(expected 8, found 4\)") as error:
        run(out, copies)
    assert "--no-resume" in error.value.hint
    run(out, copies, resume=False)
    assert snapshot(out) == expected
    with pytest.raises(UsageError, match="holds a finished output") as error:
        run(out, copies)
    assert "--overwrite" in error.value.hint


def test_other_layout_is_refused(tmp_path):
    with CheckpointWriter(tmp_path, SHARDS, identity=IDENTITY):
        pass
    with pytest.raises(UsageError, match="another layout"), CheckpointWriter(tmp_path, SHARDS[:1], identity=IDENTITY):
        pass


def test_occupied_folders(tmp_path, copies):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not empty") as error:
        run(tmp_path / "out", copies)
    assert "--overwrite" in error.value.hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    with pytest.raises(UsageError, match="must be a folder"):
        run(tmp_path / "file", copies)
    with pytest.raises(UsageError, match="cannot be written"):
        run(tmp_path / "file/below", copies)
    with pytest.raises(UsageError, match="cannot be written"):
        run(tmp_path / ("x" * 300), copies)


def test_overwriting_a_plain_checkpoint(tmp_path, sharded, copies, expected):
    folder, _ = sharded
    (folder / "lora.safetensors").write_text("mine")
    run(folder, copies, overwrite=True)
    assert snapshot(folder) == expected | {
        "lora.safetensors": b"mine", "modeling_evil.py": b"raise SystemExit\n",
    }  # fmt: skip


def test_overwriting_leaves_what_was_changed_since(tmp_path, copies):
    out = tmp_path / "out"
    (tmp_path / "readme").write_text("theirs")
    run(out, copies | {"README.md": tmp_path / "readme", "NOTICE": tmp_path / "readme"})
    (out / "README.md").write_text("my own text")
    run(out, copies, overwrite=True)
    assert (out / "README.md").read_text() == "my own text"
    assert not (out / "NOTICE").exists()


def test_one_writer_at_a_time(tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(out, SHARDS, identity=IDENTITY):
        for flags in ({}, {"overwrite": True}, {"resume": False}):
            with pytest.raises(UsageError, match=f"another run is writing here: process {os.getpid()} on "):
                run(out, copies, **flags)
    run(out, copies)
    assert snapshot(out) == expected


def test_a_lock_left_by_a_dead_process(tmp_path, copies, expected):
    out = tmp_path / "out"
    (out / ".llmq").mkdir(parents=True)
    (out / ".llmq/lock").write_text("process 1 on h since t")
    run(out, copies)
    assert snapshot(out) == expected


def test_no_room(tmp_path, copies, expected):
    import resource

    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(ResourceError, match="cannot be written: File too large") as error:
            run(out, copies)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "goes on where it stopped" in error.value.hint
    run(out, copies)
    assert snapshot(out) == expected


def test_full_disk(tmp_path, copies, expected):
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
                run(disk / "out", copies)
                break
            except ResourceError as error:
                assert "No space left" in str(error)  # noqa: PT017
                assert not (disk / "out/llmq.json").exists()
        else:
            pytest.fail("never enough room")
        assert snapshot(disk / "out") == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)


CHILD = """
import sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import test_writer_child as t
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
def test_killed_for_real(tmp_path, copies, expected):
    (tmp_path / "test_writer_child.py").write_bytes(Path(__file__).read_bytes())
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
            assert snapshot(out) == expected
            clear_leftovers(out)
            (out / "llmq.json").unlink()
    run(out, copies, overwrite=True)
    assert snapshot(out) == expected
    assert not (out / ".llmq").exists()


def test_discard(tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(out, SHARDS, identity=IDENTITY) as writer:
        writer.write(*next(pieces()))
        writer.discard()
        with pytest.raises(ValueError, match="not open"):
            writer.discard()
    assert not out.exists()
    run(out, copies)
    with CheckpointWriter(out, SHARDS, identity=IDENTITY, overwrite=True) as writer:
        writer.write(*next(pieces()))
        writer.discard()
    assert snapshot(out) == expected
    assert not (out / ".llmq").exists()


def test_a_copy_that_vanished(tmp_path, copies, expected):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="absent: vanished"):
        run(out, copies | {"README.md": tmp_path / "absent"})
    assert read_manifest(out) is None
    run(out, copies)
    assert snapshot(out) == expected


def test_clearing_leaves_unfinished_runs_alone(tmp_path, copies):
    clear_leftovers(tmp_path)
    run(tmp_path / "out", copies)
    with CheckpointWriter(tmp_path / "out", SHARDS, identity={}, overwrite=True) as writer:
        writer.write(*next(pieces()))
    clear_leftovers(tmp_path / "out")
    assert (tmp_path / "out/.llmq/plan.json").exists()


def test_journal_is_flushed_by_size(tmp_path, copies, expected, monkeypatch):
    monkeypatch.setattr("llmq.checkpoint.writer._SYNC_BYTES", 500)
    run(tmp_path / "out", copies)
    assert snapshot(tmp_path / "out") == expected


def test_checks_of_the_manifest(tmp_path, copies):
    out = tmp_path / "out"
    assert read_manifest(tmp_path) is None
    run(out, copies)
    original = (out / "llmq.json").read_text()
    good = json.loads(original)
    for change in (
        [], {"schema": True}, {"schema": 1, "files": [], "tensors": {}},
        good | {"files": {"../x": {"size": 1, "sha256": "0" * 64}}},
        good | {"files": {"config.json": {"size": 1.0, "sha256": "0" * 64}}},
        good | {"files": {"config.json": {"size": 1, "sha256": "0"}}},
        good | {"files": {"config.json": {"size": 1, "sha256": "0" * 64}}},
        good | {"files": {"absent": {"size": 1, "sha256": "0" * 64}}},
    ):  # fmt: skip
        (out / "llmq.json").write_text(json.dumps(change))
        with pytest.raises(InputError):
            read_manifest(out)
    (out / "llmq.json").write_text(json.dumps(good | {"schema": 2}))
    with pytest.raises(UnsupportedError, match="another version"):
        read_manifest(out)
    (out / "llmq.json").write_text(original)
    (out / "tokenizer.json").write_text("longer")
    with pytest.raises(InputError, match=r"tokenizer\.json: not as llmq wrote it \(expected 2 bytes, found 6 bytes\)"):
        read_manifest(out)


def test_output_and_source_must_be_apart(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    a = tmp_path / "a"
    for output in (a, a / "b", a / "new", tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="separate folders"):
            refuse_same_folder(a, output)
    refuse_same_folder(a, tmp_path / "a2")
