"""Starting the sandbox: a process that runs what strangers wrote, within bounds of time, memory and output."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

__all__ = ["Confined"]

_PROGRAM: Final = Path(__file__).with_name("sandbox.py")
_WAIT: Final = 20.0
"""Seconds beyond those of work until the process is ended in any case: a busy machine takes long over little."""

_KEPT: Final = ("TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Of the environment; strangers have no business with the rest."""


class Confined:
    """A task in a sandbox, begun at once.

    Parameters
    ----------
    task : str
        Which one; see `llmq.runtime.sandbox`.
    request : dict
        What the task needs, JSON-able.
    seconds : float
        Of processor time.
    memory : int
        Bytes.
    most : int
        Bytes of the reply that are read.

    Raises
    ------
    OSError
        No process can be started.
    """

    def __init__(self, task: str, request: dict[str, Any], *, seconds: float, memory: int, most: int) -> None:
        limits = {"task": task, "seconds": seconds, "memory": memory, "path": sys.path}
        self._most = most
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # -I and -S: nothing of the user's surroundings is looked at; the path comes with the request.
        command = [sys.executable, "-I", "-S", "-B", str(_PROGRAM)]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept | {"TOKENIZERS_PARALLELISM": "false"},
        )
        self._end = threading.Timer(seconds + _WAIT, self._process.kill)
        self._end.daemon = True
        self._end.start()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.write(json.dumps(request | limits).encode("ascii"))
            self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def reply(self) -> dict[str, Any]:
        """What the task made, or an object with `error`: why it made nothing."""
        assert self._process.stdout is not None
        try:
            found = self._process.stdout.read(self._most)
            if len(found) < self._most:
                self._process.wait()
        finally:
            self.close()
        try:
            reply = json.loads(found)
        except ValueError:
            reply = None
        if isinstance(reply, dict):
            return reply
        ended = self._process.returncode
        return {"error": "it takes too long" if ended < 0 else "it ends the process", "ended": ended}

    def close(self) -> None:
        """End the process, whatever it does; twice is fine."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()
        self._end.cancel()
