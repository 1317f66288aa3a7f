"""The shim really does what it is asked to, to the call it is asked to."""

import errno
import signal
import subprocess
import sys

import pytest

from tortures.shim import Action, Calls, environment

PROGRAM = """
import os, sys
folder = sys.argv[1]
def tell(name, call):
    try:
        print(name, call(), flush=True)
    except OSError as error:
        print(name, error.errno, flush=True)
fd = os.open(folder + "/file", os.O_RDWR | os.O_CREAT)      # 1
tell("outside", lambda: os.write(os.open("/dev/null", os.O_WRONLY), b"12345678"))
tell("write", lambda: os.pwrite(fd, b"12345678", 0))        # 2
tell("sync", lambda: os.fsync(fd))                          # 3
tell("read", lambda: len(os.pread(fd, 8, 0)))               # 4
tell("size", lambda: os.posix_fallocate(fd, 0, 20))         # 5
tell("stat", lambda: os.stat(folder + "/file").st_size)     # 6
tell("rename", lambda: os.rename(folder + "/file", folder + "/other"))  # 7
tell("unlink", lambda: os.unlink("other", dir_fd=os.open(folder, os.O_RDONLY)))  # 8, 9
"""

USUAL = ["outside 8", "write 8", "sync None", "read 8", "size None", "stat 20", "rename None", "unlink None"]


@pytest.fixture
def faulty(shim, tmp_path):
    def run(**variables):
        (tmp_path / "in").mkdir(exist_ok=True)
        told = {f"TORTURE_{name.upper()}": int(value) for name, value in variables.items()}
        env = environment(shim, TORTURE_WATCH=tmp_path / "in", **told)
        command = [sys.executable, "-S", "-c", PROGRAM, str(tmp_path / "in")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done.stdout.splitlines(), done.returncode, tmp_path / "in"

    return run


def test_nothing_armed_changes_nothing(faulty):
    assert faulty()[:2] == (USUAL, 0)


@pytest.mark.parametrize(
    ("at", "name"),
    [(2, "write"), (3, "sync"), (4, "read"), (5, "size"), (6, "stat"), (7, "rename"), (8, "unlink"), (9, "unlink")],
)
def test_the_nth_call_fails_and_no_other(faulty, at, name):
    lines, code, folder = faulty(at=at, action=Action.FAIL, error=errno.EIO)
    expected = [f"{name} {errno.EIO}" if line.split()[0] == name else line for line in USUAL]
    if name == "write":
        expected[USUAL.index("read 8")] = "read 0"
    if name == "size":
        expected[USUAL.index("stat 20")] = "stat 8"
    if name == "rename":
        expected[-1] = f"unlink {errno.ENOENT}"
    assert (lines, code) == (expected, 0)
    assert (folder / "other").exists() == (name == "unlink")


def test_all_calls_from_one_on_fail(faulty):
    lines, _, folder = faulty(at=5, action=Action.FAIL, error=errno.ENOSPC, forever=True)
    assert lines == [*USUAL[:4], *(f"{line.split()[0]} {errno.ENOSPC}" for line in USUAL[4:])]
    assert (folder / "file").stat().st_size == 8


def test_only_chosen_kinds_of_calls_count(faulty):
    lines, _, _ = faulty(at=1, action=Action.FAIL, error=errno.EIO, classes=Calls.SYNC | Calls.NAME)
    assert lines[2] == f"sync {errno.EIO}"
    assert lines[:2] + lines[3:] == USUAL[:2] + USUAL[3:]


@pytest.mark.parametrize(
    ("action", "size"),
    [(Action.KILL_BEFORE, 0), (Action.KILL_AFTER, 8), (Action.TORN, 4)],
    ids=lambda value: str(value),
)
def test_the_process_is_killed_before_after_and_within_a_write(faulty, action, size):
    lines, code, folder = faulty(at=2, action=action)
    assert (lines, code) == (["outside 8"], -signal.SIGKILL)
    assert (folder / "file").stat().st_size == size


def test_a_short_write_and_a_short_read(faulty):
    lines, _, _ = faulty(at=1, action=Action.SHORT, forever=True, classes=Calls.READ | Calls.WRITE)
    assert lines[1] == "write 4"
    assert lines[3] == "read 4"


def test_a_signal_at_a_call(faulty):
    _, code, folder = faulty(at=7, action=Action.SIGNAL, error=signal.SIGTERM)
    assert code == -signal.SIGTERM
    assert (folder / "file").exists()
