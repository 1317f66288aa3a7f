"""The fault shim: `shim.c` compiled, and what it can be asked to do."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Final

__all__ = ["Action", "Calls", "Fault", "NoShimError", "build", "environment"]

_SOURCE: Final = Path(__file__).with_name("shim.c")


class NoShimError(Exception):
    """There is no shim here; the text says why."""


class Action(IntEnum):
    """What becomes of the call that a fault hits, as `shim.h` numbers it."""

    COUNT = 0
    FAIL = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    SHORT = 4
    TORN = 5
    SIGNAL = 6


class Calls(IntFlag):
    """Kinds of calls, as `shim.h` numbers them."""

    OPEN = 1
    CREATE = 2
    READ = 4
    WRITE = 8
    SYNC = 16
    NAME = 32
    SIZE = 64
    LOCK = 128
    STAT = 256
    LIST = 512
    ALL = 1023


@dataclass(frozen=True)
class Fault:
    """What happens at one call of the system, or at all from it on.

    Parameters
    ----------
    at : int
        Number of the call, from 1 on, among those of `classes`; 0 is none.
    action : Action
    error : int
        `errno` of a call that fails; of `SIGNAL`, the signal.
    forever : bool
        Whether all later calls are hit too.
    classes : Calls
        Those that count.
    """

    at: int = 0
    action: Action = Action.COUNT
    error: int = errno.EIO
    forever: bool = False
    classes: Calls = Calls.ALL

    def to_json(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return {name: int(value) for name, value in asdict(self).items()}


def build(folder: Path) -> Path:
    """Compile the shim into a folder.

    Raises
    ------
    NoShimError
        Not Linux, no compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        raise NoShimError("calls of the system can be intercepted on Linux only")
    if compiler is None:
        raise NoShimError("no C compiler: install cc")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoShimError(f"the fault shim does not compile: {done.stderr.strip()[:500]}")
    return library


def environment(shim: Path | None = None, **more: object) -> dict[str, str]:
    """Environment of a Python that finds what this one finds, with the shim preloaded where there is one.

    Parameters
    ----------
    shim : Path, optional
        From `build`.
    more : object
        Further variables by name.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("LLMQ_DEBUG", "LD_PRELOAD")}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    preload = {} if shim is None else {"LD_PRELOAD": str(shim)}
    return kept | preload | {name: str(value) for name, value in more.items()}
