"""Commands of llmq in processes of their own, forked from one that has imported everything: quick, and apart."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Outcome", "in_fork"]

_CRASH: Final = 121
"""Exit code of a process in which an exception got through."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Parameters
    ----------
    code : int
        Its exit code, or minus the signal that ended it.
    out, err : str
        What it wrote.
    seconds : float
        Of processor time.
    grown : int
        Bytes that its memory grew by, at the peak.
    """

    code: int
    out: str
    err: str
    seconds: float
    grown: int


def in_fork(work: Callable[[], int], scratch: Path, *, seconds: float) -> Outcome:
    """Do some work in a fork of this process, which must not have run parallel kernels.

    Parameters
    ----------
    work : callable
        Returns the exit code.
    scratch : Path
        Folder for what it writes.
    seconds : float
        It is killed after so long.
    """
    files = [scratch / name for name in ("stdin", "stdout", "stderr")]
    if not files[0].exists():
        files[0].write_bytes(b"")
    before, began = _resident(), time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(work, files)
    status, usage = _wait(child, began + seconds)
    grown = max(0, usage.ru_maxrss * 1024 - before)
    out, err = (path.read_bytes().decode("utf-8", "backslashreplace") for path in files[1:])
    return Outcome(os.waitstatus_to_exitcode(status), out, err, usage.ru_utime + usage.ru_stime, grown)


def _become(work: Callable[[], int], files: list[Path]) -> None:
    """Be the child: everything goes to files, and nothing of the parent is cleaned up."""
    code = _CRASH
    try:
        for number, path in enumerate(files):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o600), number)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _wait(child: int, deadline: float) -> tuple[int, Any]:
    """Status, and what it used."""
    pause = 0.001
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
