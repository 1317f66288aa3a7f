import errno
import os
import time

import pytest

from llmq.system import files


@pytest.fixture(params=["native", "portable"])
def platform(request, monkeypatch):
    if request.param == "portable":
        for name in ("preadv", "pwrite", "posix_fallocate", "fdatasync", "O_DIRECTORY"):
            monkeypatch.delattr(os, name)
    return request.param


@pytest.fixture
def opened(tmp_path):
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_reads_and_writes_at_offsets(platform, opened):
    files.pwrite(opened, memoryview(b"abcdef"), 3)
    files.pwrite(opened, memoryview(b""), 3)
    buffer = bytearray(4)
    assert files.preadv(opened, memoryview(buffer), 4) == 4
    assert buffer == b"bcde"
    assert files.preadv(opened, memoryview(buffer), 7) == 2
    assert files.preadv(opened, memoryview(buffer), 100) == 0
    assert files.preadv(opened, memoryview(bytearray()), 0) == 0


def test_short_reads_and_writes_go_on(monkeypatch, opened):
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read(fd, [buffers[0][:3]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:2], offset))
    files.pwrite(opened, memoryview(b"0123456789"), 0)
    buffer = bytearray(10)
    assert files.preadv(opened, memoryview(buffer), 0) == 10
    assert buffer == b"0123456789"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(OSError, match="Input/output error"):
        files.pwrite(opened, memoryview(b"1"), 0)


def test_preallocate(platform, opened):
    files.preallocate(opened, 0)
    files.preallocate(opened, 5000)
    assert os.fstat(opened).st_size == 5000
    with pytest.raises(OSError) as error:
        files.preallocate(opened, 1 << 55)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_preallocate_where_the_file_system_cannot(monkeypatch, opened):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    files.preallocate(opened, 5000)
    assert os.fstat(opened).st_size == 5000


def test_atomic_write(platform, tmp_path):
    path = tmp_path / "f"
    old = os.umask(0o022)
    try:
        files.atomic_write(path, b"one")
        files.atomic_write(path, b"two", temporary=tmp_path / "t")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_atomic_write_leaves_nothing_behind(monkeypatch, tmp_path):
    def refuse(fd):
        raise OSError(errno.EIO, "broken")

    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken"):
        files.atomic_write(tmp_path / "f", b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_atomic_write_removes_what_a_kill_left_long_ago(tmp_path):
    for name, age in ((".f.1.tmp", 700), (".f.2.tmp", 5), (".g.1.tmp", 700), ("f.1.tmp", 700)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.atomic_write(tmp_path / "f", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.2.tmp", ".g.1.tmp", "f", "f.1.tmp"]


def test_whether_something_is_there(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("nowhere")
    assert files.is_present(tmp_path / "link")
    for absent in (tmp_path / "no", tmp_path / "link" / "x", "a\0b", "x" * 10_000):
        assert not files.is_present(absent)

    def fail(path):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "lstat", fail)
    with pytest.raises(OSError, match="broken"):
        files.is_present(tmp_path)


def test_a_folder_and_those_above_it_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    files.make_folder(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    assert synced == [tmp_path / "a", tmp_path]
    files.make_folder(tmp_path / "a/b")
    assert len(synced) == 2


def test_syncs(platform, tmp_path, opened):
    files.sync_data(opened)
    files.sync_file(opened)
    files.sync_folder(tmp_path)


def test_replace_across_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("x")
    files.replace(tmp_path / "a/x", tmp_path / "y")
    assert (tmp_path / "y").read_text() == "x"


def test_free_bytes(tmp_path):
    assert files.free_bytes(tmp_path / "not/there/yet") == pytest.approx(files.free_bytes(tmp_path), rel=0.5)
