"""A program that forks a child for every run of the command it is asked for: what is slow to import, it imports once.

Requests and answers are lines of JSON, see `hosting.py`. Kernels have run here on one thread only, if at all, none of
them with OpenMP, and no thread is left when a child is forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_SHIM: Final = ctypes.CDLL(None)


def main() -> None:
    """Answer requests until there are no more."""
    for number in (signal.SIGHUP, signal.SIGTERM):  # nohup has one ignored
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        if "warm" in request:
            print(json.dumps(warm(request["warm"])), flush=True)
            continue
        arm(request)
        assert threading.active_count() == 1
        pid = os.fork()
        if pid == 0:
            become(request)
        answer = watch(pid, request) | counted()
        print(json.dumps(answer), flush=True)


def import_everything() -> None:
    """Import what a run needs, Numba's typing rules too, which it loads when the first kernel is called."""
    from numba.core.registry import cpu_target

    for name in ("llmq.cli.quantize", "llmq.methods", "llmq.pipeline.run", "llmq_kernels.nonfinite"):
        import_module(name)
    cpu_target.target_context.refresh()
    cpu_target.typing_context.refresh()


def warm(arguments: list[str]) -> int:
    """Run the command in this process, so that its kernels are loaded; its exit code."""
    from llmq.cli.main import status

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return status(arguments)


def arm(request: dict[str, Any]) -> None:
    """Tell the shim, if there is one, of the folders and the fault; only the child will meet it."""
    if hasattr(_SHIM, "torture_arm"):
        fault = request["fault"]
        _SHIM.torture_watch(request["watch"].encode())
        numbers = [ctypes.c_int(fault[name]) for name in ("action", "error", "forever")]
        _SHIM.torture_arm(ctypes.c_long(fault["at"]), *numbers, ctypes.c_uint(fault["classes"]))
        _SHIM.torture_unlocked(ctypes.c_int(request["unlocked"]))


def become(request: dict[str, Any]) -> NoReturn:
    """Be the command, in the child, and leave without the second that Python takes to clear all it has imported."""
    from llmq.cli.main import status
    from llmq.cli.stopping import interruptible

    for target, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, target)
        os.close(fd)
    if request["log"]:
        _SHIM.torture_log(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    os.umask(request["umask"])
    for name, limit in request["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    with interruptible():
        code = status(request["arguments"])
    end_threads: Callable[[], None] = vars(threading)["_shutdown"]  # as at the end of every process
    end_threads()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def watch(pid: int, request: dict[str, Any]) -> dict[str, Any]:
    """Send a child its signals and wait for its end: how it ended, and how long after the first signal."""
    began = time.monotonic()
    first = None
    ended = os.pidfd_open(pid)
    for delay, number in [*request["signals"], (request["timeout"], signal.SIGKILL)]:
        left = began + delay - time.monotonic()
        if select.select([ended], [], [], max(0.0, left))[0]:
            break
        first = first or time.monotonic()
        os.kill(pid, number)
    _, status, usage = os.wait4(pid, 0)
    now = time.monotonic()
    os.close(ended)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": now - began,
        "after_signal": now - first if first else 0.0,
        "peak": usage.ru_maxrss * 1024,
    }


def counted() -> dict[str, Any]:
    """What the shim counted in the child."""
    if not hasattr(_SHIM, "torture_arm"):
        return {"calls": 0, "met": 0, "what": ""}
    _SHIM.torture_what.restype = ctypes.c_char_p
    return {"calls": _SHIM.torture_calls(), "met": _SHIM.torture_met(), "what": _SHIM.torture_what().decode()}


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    main()
