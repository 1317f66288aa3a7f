"""Runs of the command, quick enough to be repeated thousands of times: a process that has imported it forks each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tortures.shim import Fault, build, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Host", "Outcome", "Request"]

_PROGRAM: Final = Path(__file__).with_name("host.py")


@dataclass(frozen=True)
class Request:
    """One run.

    Parameters
    ----------
    arguments : sequence of str
        Of the command ``llmq``.
    fault : Fault
    watch : sequence of Path
        Absolute folders whose calls count.
    signals : sequence of (float, int)
        Signals by seconds after the start, in order.
    limits : mapping
        Soft limits by the names of `resource`, such as ``{"FSIZE": 1000}``.
    unlocked : bool
        Whether every `flock` succeeds.
    umask : int
    timeout : float
        Seconds until the run is killed.
    """

    arguments: Sequence[str]
    fault: Fault = Fault()
    watch: Sequence[Path] = ()
    signals: Sequence[tuple[float, int]] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    unlocked: bool = False
    umask: int = 0o022
    timeout: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    code : int
        Exit code, or less a signal's number.
    stdout, stderr : str
    calls, met : int
        Calls counted, and calls that a fault hit.
    what : str
        The first call that was hit, and its path.
    seconds, after_signal : float
        From the start and from the first signal to the end.
    peak : int
        Resident bytes.
    """

    code: int
    stdout: str
    stderr: str
    calls: int
    met: int
    what: str
    seconds: float
    after_signal: float
    peak: int


class Host:
    """A process that runs the command in forked children; a context manager.

    Parameters
    ----------
    scratch : Path
        A folder for the shim and for what children print; not watched.

    Raises
    ------
    NoShimError
        The shim cannot be built.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._library = build(scratch)
        self.log = scratch / "calls.log"

    def __enter__(self) -> Host:
        command = [sys.executable, str(_PROGRAM)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(self._library), text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def run(self, request: Request, *, logged: bool = False) -> Outcome:
        """Run the command once; `logged` lists the calls in the file `log`, by lines of tab-separated fields.

        These are number, name, path, second path, offset or flags or size, and result.
        """
        out, err = self._scratch / "stdout", self._scratch / "stderr"
        self.log.unlink(missing_ok=True)
        line = {
            "arguments": [str(argument) for argument in request.arguments],
            "fault": request.fault.to_json(),
            "watch": ":".join(map(str, request.watch)),
            "signals": [(delay, int(number)) for delay, number in request.signals],
            "limits": dict(request.limits),
            "unlocked": request.unlocked,
            "umask": request.umask,
            "timeout": request.timeout,
            "stdout": str(out),
            "stderr": str(err),
            "log": str(self.log) if logged else "",
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(line), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        texts = {"stdout": out.read_text(errors="replace"), "stderr": err.read_text(errors="replace")}
        return Outcome(**answer, **texts)
