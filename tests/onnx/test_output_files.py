"""The files of an output appear whole or not at all, and never replace what they are made of."""

import errno
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

import llmq.onnx.output_files
from llmq.errors import ResourceError, UsageError
from llmq.onnx import quantize_model
from llmq.onnx.output_files import DataFile, Staged, data_path, refuse_output
from llmq.system.lock import FileLock


@pytest.fixture
def model(write_onnx, tmp_path):
    rng = np.random.default_rng(0)
    return write_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])],
        {n: rng.standard_normal((64, 64)).astype(np.float32) for n in "wv"},
        {"x": (np.float32, [2, 64])},
        {"y": (np.float32, [2, 64])},
        external="m.bin",
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_second_run_needs_overwrite_and_replaces_both_files(model, tmp_path):
    out = tmp_path / "out.onnx"
    quantize_model(model, out, bits=4)
    small = out.read_bytes(), data_path(out).read_bytes()
    with pytest.raises(UsageError, match="already there"):
        quantize_model(model, out, bits=8)
    assert (out.read_bytes(), data_path(out).read_bytes()) == small
    quantize_model(model, out, bits=8, overwrite=True)
    assert data_path(out).stat().st_size > len(small[1])
    onnx.checker.check_model(str(out), full_check=True)
    assert names(tmp_path) == ["m.bin", "m.onnx", "out.onnx", "out.onnx.data"]


@pytest.mark.parametrize("way", ["same", "link", "hard link", "data"])
def test_a_file_of_the_source_is_never_replaced(model, tmp_path, way):
    out = tmp_path / "out.onnx"
    if way == "same":
        out = model
    elif way == "link":
        out.symlink_to(model)
    elif way == "hard link":
        os.link(model, out)
    else:
        os.link(tmp_path / "m.bin", data_path(out))
    before = model.read_bytes(), (tmp_path / "m.bin").read_bytes()
    with pytest.raises(UsageError, match="would replace a file of the source"):
        quantize_model(model, out, overwrite=True)
    assert (model.read_bytes(), (tmp_path / "m.bin").read_bytes()) == before


@pytest.mark.parametrize(
    ("place", "message"),
    [("out", r"must end in \.onnx"), ("none/out.onnx", "no such folder"), ("folder.onnx", "a folder is in its place")],
)
def test_outputs_that_cannot_be_files_are_refused(model, tmp_path, place, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=message):
        quantize_model(model, tmp_path / place, overwrite=True)
    assert names(tmp_path) == ["folder.onnx", "m.bin", "m.onnx"]


@pytest.mark.parametrize("call", ["preallocate", "pwrite", "sync_file", "replace", "sync_folder"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_fault_at_any_step_leaves_no_half_of_a_model(model, tmp_path, monkeypatch, call, fault):
    out = tmp_path / "out.onnx"
    quantize_model(model, out, bits=8)

    def fail(*arguments, **options):
        raise fault

    monkeypatch.setattr(llmq.onnx.output_files, call, fail)
    with pytest.raises(ResourceError if isinstance(fault, OSError) else KeyboardInterrupt):
        quantize_model(model, out, bits=4, overwrite=True)
    assert set(names(tmp_path)) <= {"m.bin", "m.onnx", "out.onnx", "out.onnx.data"}
    if out.exists():
        onnx.checker.check_model(str(out), full_check=True)
    monkeypatch.undo()
    quantize_model(model, out, bits=4, overwrite=True)
    onnx.checker.check_model(str(out), full_check=True)


def test_too_little_disk_is_told_before_anything_is_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(llmq.onnx.output_files, "free_bytes", lambda path: 100)
    with pytest.raises(ResourceError, match=r"not enough disk space .expected 4.* kB, found 100 B free"):
        quantize_model(model, tmp_path / "out.onnx")
    assert names(tmp_path) == ["m.bin", "m.onnx"]


def test_two_runs_do_not_write_the_same_files(model, tmp_path):
    out = tmp_path / "out.onnx"
    lock = FileLock(tmp_path / ".out.onnx.lock")
    lock.acquire()
    with pytest.raises(UsageError, match="another run is writing here: process"):
        quantize_model(model, out)
    lock.release()
    quantize_model(model, out)


def test_what_a_killed_run_left_goes(model, tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    gone, running = int(done.stdout), os.getppid()
    kept = [tmp_path / name for name in (f".out.onnx.{running}.tmp", ".out.onnx.notes.tmp")]
    for path in (*kept, tmp_path / f".out.onnx.{gone}.tmp", tmp_path / f".out.onnx.data.{gone}.tmp"):
        path.touch()
    (tmp_path / ".out.onnx.lock").write_bytes(b"left")
    quantize_model(model, tmp_path / "out.onnx")
    assert names(tmp_path) == sorted(["m.bin", "m.onnx", "out.onnx", "out.onnx.data", *(path.name for path in kept)])


def test_nothing_is_left_of_what_is_not_published(tmp_path):
    with Staged(tmp_path / "new" / "a.onnx", overwrite=False) as staged:
        with DataFile(staged.path("a.onnx.data"), 4096) as file:
            file.write(8, np.ones(8, np.uint8))
        assert staged.path("a.onnx.data").read_bytes() == bytes(8) + bytes([1] * 8) + bytes(4080)
        staged.write_graph(b"graph")
    assert names(tmp_path) == []


def test_places(tmp_path):
    refuse_output(tmp_path / "m.onnx", overwrite=False)
    with pytest.raises(UsageError, match=r"must end in \.onnx") as caught:
        refuse_output(tmp_path / "out", overwrite=False)
    assert caught.value.hint == f"-o {tmp_path / 'out' / 'model.onnx'}"
    (tmp_path / "dir.onnx.data").mkdir()
    with pytest.raises(UsageError, match="a folder is in its place"):
        refuse_output(tmp_path / "dir.onnx", overwrite=True)
    refuse_output(tmp_path / "dir.onnx", overwrite=False, data=False)


@pytest.mark.parametrize(
    ("call", "nth"), [("sync_file", 1), ("sync_file", 2), ("sync_folder", 1), ("replace", 1), ("replace", 2)]
)
@pytest.mark.parametrize("after", [False, True])
def test_data_never_stays_without_its_model(model, tmp_path, monkeypatch, call, nth, after):
    out, calls = tmp_path / "out.onnx", []
    real = getattr(llmq.onnx.output_files, call)

    def fail(*arguments):
        calls.append(call)
        if len(calls) < nth:
            return real(*arguments)
        if after:
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(llmq.onnx.output_files, call, fail)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(model, out)
    whole = (call, nth, after) == ("replace", 2, True)
    assert names(tmp_path) == ["m.bin", "m.onnx", *(["out.onnx", "out.onnx.data"] if whole else [])]
    monkeypatch.undo()
    quantize_model(model, out, overwrite=whole)
    onnx.checker.check_model(str(out), full_check=True)


def test_a_full_disk_costs_nothing_of_what_is_replaced(model, tmp_path, monkeypatch):
    out = tmp_path / "out.onnx"
    quantize_model(model, out, bits=8)
    before = out.read_bytes(), data_path(out).read_bytes()

    def full(staged, graph):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Staged, "write_graph", full)
    with pytest.raises(ResourceError):
        quantize_model(model, out, bits=4, overwrite=True)
    assert (out.read_bytes(), data_path(out).read_bytes()) == before
    assert names(tmp_path) == ["m.bin", "m.onnx", "out.onnx", "out.onnx.data"]


def test_what_another_run_finished_meanwhile_is_not_replaced(model, tmp_path):
    out = tmp_path / "out.onnx"
    quantize_model(model, out)
    with pytest.raises(UsageError, match="already there"), Staged(out, overwrite=False):
        pass
    assert names(tmp_path) == ["m.bin", "m.onnx", "out.onnx", "out.onnx.data"]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system always follows links")
@pytest.mark.parametrize("planted", [".out.onnx.lock", ".out.onnx.data.PID.tmp", ".out.onnx.PID.tmp"])
def test_links_where_something_is_staged_are_not_followed(model, tmp_path, planted):
    (tmp_path / "precious").write_text("text")
    planted = planted.replace("PID", str(os.getpid()))
    (tmp_path / planted).symlink_to(tmp_path / "precious")
    if planted.endswith("lock"):
        with pytest.raises(OSError):
            quantize_model(model, tmp_path / "out.onnx")
    else:
        quantize_model(model, tmp_path / "out.onnx")
        assert not (tmp_path / "out.onnx").is_symlink()
    assert (tmp_path / "precious").read_text() == "text"


def test_a_name_that_is_not_utf_8_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match=r"\\udcff\.onnx: the name of the output is not UTF-8"):
        quantize_model(model, tmp_path / "\udcff.onnx")
    assert names(tmp_path) == ["m.bin", "m.onnx"]


def test_a_dry_run_asks_for_no_place(model, tmp_path):
    out = tmp_path / "out.onnx"
    quantize_model(model, out)
    before = out.read_bytes(), data_path(out).read_bytes()
    assert quantize_model(model, out, bits=8, dry_run=True).state == "dry run"
    assert (out.read_bytes(), data_path(out).read_bytes()) == before
