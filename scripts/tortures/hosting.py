"""Runs of the command, quick enough to be repeated thousands of times: a process that has imported it forks each."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tortures.shim import Fault, build, environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Host", "Outcome", "Request", "spawn", "start"]

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
    fault: Fault = field(default_factory=Fault)
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
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(self._library, NUMBA_NUM_THREADS=1, OMP_NUM_THREADS=1),  # a fork has no other threads
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def warm(self, arguments: Sequence[str]) -> None:
        """Run the command once in the process itself, undisturbed, so that no later run loads its kernels.

        It must use one thread and no parallel loops of Numba, such as `--method rtn`: no process survives a fork behind
        one of GNU OpenMP's.
        """
        code = self._ask({"warm": [str(argument) for argument in arguments]})
        assert code == 0, code

    def _ask(self, request: Mapping[str, object]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def memory(self) -> dict[str, int]:
        """Bytes that the process takes already, by the names of limits."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return {name: 1024 * int(found[key].split()[0]) for name, key in (("AS", "VmSize"), ("DATA", "VmData"))}

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
        answer = self._ask(line)
        return Outcome(stdout=out.read_text(errors="replace"), stderr=err.read_text(errors="replace"), **answer)


def spawn(
    arguments: Sequence[str],
    *,
    shim: Path | None = None,
    signals: Sequence[tuple[float, int]] = (),
    limits: Mapping[str, int] | None = None,
    timeout: float = 120.0,
    variables: Mapping[str, object] | None = None,
) -> Outcome:
    """Run the command in a process of its own, as a user does; see `Request`.

    Parameters
    ----------
    shim : Path, optional
        Preloaded; armed by the `variables` that `shim.c` names.
    variables : mapping, optional
        Of the environment.
    """
    began = time.monotonic()
    with start(arguments, shim=shim, limits=limits, variables=variables) as process:
        first = None
        for delay, number in signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, began + delay - time.monotonic()))
                break
            first = first or time.monotonic()
            process.send_signal(number)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    now = time.monotonic()
    return Outcome(process.returncode, out, err, 0, 0, "", now - began, now - first if first else 0.0, 0)


def start(
    arguments: Sequence[str],
    *,
    shim: Path | None = None,
    limits: Mapping[str, int] | None = None,
    variables: Mapping[str, object] | None = None,
) -> subprocess.Popen[str]:
    """Begin what `spawn` does."""
    prefix = [] if not limits else ["prlimit", *(f"--{name.lower()}={limit}" for name, limit in limits.items())]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "llmq", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(shim, **(variables or {})),
        text=True,
        errors="replace",
    )
