"""Whose an output folder is: locks, earlier runs, what is replaced and what is cleared."""

import os

import pytest

from llmq.checkpoint.journal import Journal, Record, read_record
from llmq.checkpoint.output_folder import clear_leftovers, refuse_same_folder, take_lock
from llmq.checkpoint.writer import CheckpointWriter
from llmq.errors import UsageError
from llmq.system.lock import FileLock


def test_other_settings_are_refused_by_name(example, tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(
        out, example.shards, identity=example.identity | {"settings": {"bits": 8, "group": [1, 2]}}
    ) as writer:
        writer.write(*next(example.pieces()))
    with pytest.raises(UsageError, match=r"another identity\.settings\.bits is there \(expected 8, found 4\)") as error:
        example.run(out, copies)
    assert "--no-resume" in error.value.hint
    example.run(out, copies, resume=False)
    assert example.snapshot(out) == expected
    with pytest.raises(UsageError, match="holds a finished output") as error:
        example.run(out, copies)
    assert "--overwrite" in error.value.hint


def test_other_layout_is_refused(example, tmp_path):
    with CheckpointWriter(tmp_path, example.shards, identity=example.identity):
        pass
    with (
        pytest.raises(UsageError, match="another layout"),
        CheckpointWriter(tmp_path, example.shards[:1], identity=example.identity),
    ):
        pass


def test_occupied_folders(example, tmp_path, copies):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not empty") as error:
        example.run(tmp_path / "out", copies)
    assert "--overwrite" in error.value.hint
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]
    with pytest.raises(UsageError, match="must be a folder"):
        example.run(tmp_path / "file", copies)
    with pytest.raises(UsageError, match="cannot be written"):
        example.run(tmp_path / "file/below", copies)
    with pytest.raises(UsageError, match="cannot be written"):
        example.run(tmp_path / ("x" * 300), copies)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot be written"):
        example.run(tmp_path / "dangling", copies)


def test_overwriting_a_plain_checkpoint(example, tmp_path, sharded, copies, expected):
    folder, _ = sharded
    (folder / "lora.safetensors").write_text("mine")
    example.run(folder, copies, overwrite=True)
    assert example.snapshot(folder) == expected | {
        "lora.safetensors": b"mine", "modeling_evil.py": b"raise SystemExit\n",
    }  # fmt: skip


def test_overwriting_leaves_what_was_changed_since(example, tmp_path, copies):
    out = tmp_path / "out"
    (tmp_path / "readme").write_text("theirs")
    example.run(out, copies | {"README.md": tmp_path / "readme", "NOTICE": tmp_path / "readme"})
    (out / "README.md").write_text("my own text")
    example.run(out, copies, overwrite=True)
    assert (out / "README.md").read_text() == "my own text"
    assert not (out / "NOTICE").exists()


def test_one_writer_at_a_time(example, tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(out, example.shards, identity=example.identity):
        for flags in ({}, {"overwrite": True}, {"resume": False}):
            with pytest.raises(UsageError, match=f"another run is writing here: process {os.getpid()} on "):
                example.run(out, copies, **flags)
    example.run(out, copies)
    assert example.snapshot(out) == expected


def test_a_lock_left_by_a_dead_process(example, tmp_path, copies, expected):
    out = tmp_path / "out"
    (out / ".llmq").mkdir(parents=True)
    (out / ".llmq/lock").write_text("process 1 on h since t")
    example.run(out, copies)
    assert example.snapshot(out) == expected


def test_clearing_leaves_unfinished_runs_alone(example, tmp_path, copies):
    clear_leftovers(tmp_path)
    example.run(tmp_path / "out", copies)
    with CheckpointWriter(tmp_path / "out", example.shards, identity={}, overwrite=True) as writer:
        writer.write(*next(example.pieces()))
    clear_leftovers(tmp_path / "out")
    assert (tmp_path / "out/.llmq/plan.json").exists()


def journal_of_a_finished_output(example, out, copies):
    """A finished output whose scratch was not removed, and its journal, a cut line at the end."""
    example.run(out, copies)
    (out / ".llmq").mkdir()
    path = out / ".llmq/journal.jsonl"
    journal = Journal(path)
    journal.append(publishing=True)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"tensor": "a", "sha')
    return path


def test_clearing_writes_nothing_before_the_lock_is_its_own(example, tmp_path, copies):
    out = tmp_path / "out"
    journal = journal_of_a_finished_output(example, out, copies)
    (out / ".llmq/plan.json").write_text("{}")
    before = journal.read_bytes()
    lock = FileLock(out / ".llmq/lock")
    lock.acquire()
    with pytest.raises(UsageError, match="another run"):
        clear_leftovers(out)
    assert journal.read_bytes() == before
    lock.release()
    clear_leftovers(out)
    assert not (out / ".llmq").exists()


def test_clearing_looks_again_under_the_lock(example, tmp_path, copies, monkeypatch):
    out = tmp_path / "out"
    journal = journal_of_a_finished_output(example, out, copies)

    def late(folder, *, overwrite):
        lock = take_lock(folder, overwrite=overwrite)
        (out / ".llmq/plan.json").write_text("{}")  # a run has begun meanwhile, and was stopped
        journal.unlink()
        return lock

    monkeypatch.setattr("llmq.checkpoint.output_folder.take_lock", late)
    clear_leftovers(out)
    assert (out / ".llmq/plan.json").exists()


def test_reading_a_journal_changes_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert read_record(path) == Record()
    assert not path.exists()
    journal = Journal(path)
    journal.append(tensor="a", file="f", sha256="0")
    journal.append(publishing=True)
    journal.close()
    content = path.read_bytes()[:-1]
    path.write_bytes(content)
    path.chmod(0o400)
    assert read_record(path) == Record(tensors={"a": "0"})
    assert path.read_bytes() == content
    path.chmod(0o600)
    journal = Journal(path)
    journal.close()
    assert journal.record == Record(tensors={"a": "0"})
    assert path.read_bytes() == content.splitlines(keepends=True)[0]


def test_no_flipped_bit_in_a_journal_is_believed(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(tensor="a", file="f", sha256="0" * 64)
    journal.append(source="a", xxh3_128="0" * 32)
    journal.append(sealed="f", size=17, sha256="1" * 64)
    journal.close()
    content = path.read_bytes()
    whole = read_record(path)
    assert (whole.sources, whole.sealed) == ({"a": "0" * 32}, {"f": (17, "1" * 64)})
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            found = read_record(path)
            for part in ("tensors", "sources", "sealed"):
                assert getattr(found, part).items() <= getattr(whole, part).items()
            assert not found.sealed


def test_output_and_source_must_be_apart(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    a = tmp_path / "a"
    for output in (a, a / "b", a / "new", tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="separate folders"):
            refuse_same_folder(a, output)
    refuse_same_folder(a, tmp_path / "a2")
