import errno
import logging
import os
import subprocess
import sys

import pytest

from llmq.system import lock
from llmq.system.lock import FileLock, Held


def test_one_at_a_time(tmp_path):
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    one.acquire()
    one.acquire()
    with pytest.raises(Held, match=f"process {os.getpid()} on .* since "):
        other.acquire()
    one.release()
    one.release()
    other.acquire()
    other.release()


def test_removed_while_held(tmp_path):
    one, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    one.acquire()
    (tmp_path / "lock").unlink()
    other.acquire()
    one.release()
    third = FileLock(tmp_path / "lock")
    with pytest.raises(Held):
        third.acquire()
    other.release()


def test_removed_between_opening_and_locking(tmp_path, monkeypatch):
    real, calls = lock._lock_file, []

    def remove_first(fd):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(fd)
        real(fd)

    monkeypatch.setattr(lock, "_lock_file", remove_first)
    one = FileLock(tmp_path / "lock")
    one.acquire()
    assert len(calls) == 2
    assert (tmp_path / "lock").exists()
    one.release()


def test_a_dead_process_holds_nothing(tmp_path):
    code = "import sys, os; from llmq.system.lock import FileLock; from pathlib import Path;"
    code += "FileLock(Path(sys.argv[1])).acquire(); os._exit(9)"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    one = FileLock(tmp_path / "lock")
    one.acquire()
    one.release()


def test_file_systems_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(fd):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(lock, "_lock_file", refuse)
    one = FileLock(tmp_path / "lock")
    with caplog.at_level(logging.WARNING, "llmq"):
        one.acquire()
    assert "has no locks" in caplog.text
    one.release()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system always follows links")
def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        FileLock(tmp_path / "lock").acquire()
    assert (tmp_path / "precious").read_text() == "text"
