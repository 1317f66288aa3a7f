"""Too little memory, from not enough to start with up to plenty."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

from tortures.faults import Scene, resume
from tortures.findings import Findings
from tortures.hosting import Host, Request, spawn
from tortures.shim import environment
from tortures.subject import complaint, make_subject, remove, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.hosting import Outcome
    from tortures.tally import Tally

__all__ = ["run"]

_MIB: Final = 1 << 20
_ABORTED: Final = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGTRAP)
"""How LLVM and the loader of shared libraries end a process that has no memory left."""


_NO_REASON: Final = "SystemError: error return without exception set"
"""What Python makes of an extension module that found no memory and did not say so."""


def _forked(host: Host, scene: Scene, out: Path, kind: str, limits: range) -> Tally:
    """Limit the memory of forked runs, whose imports are done."""
    found = Findings()
    for limit in limits:
        scene.prepare(out)
        outcome = host.run(scene.request(out, limits={kind: limit}))
        wrong = _complaint(outcome, state_of(out, scene.finished)) or resume(host, scene, out)
        found.add(outcome.code, wrong, f"{limit // _MIB} MiB")
    remove(out)
    what = f"imports done, RLIMIT_{kind} {limits[0] // _MIB} to {limits[-1] // _MIB} MiB"
    return found.tally(what, _well(found))


def _processes(host: Host, scene: Scene, out: Path, limits: range) -> Tally:
    """Limit the memory of whole processes; what Python and NumPy cannot even start with is theirs to tell."""
    found, variables = Findings(), _without_scipy(out.with_name("hidden"))
    for limit in limits:
        scene.prepare(out)
        outcome = spawn(scene.request(out).arguments, limits={"AS": limit}, variables=variables)
        state = state_of(out, scene.finished)
        wrong = "" if state == "absent" else _complaint(outcome, state)
        found.add(outcome.code, wrong or resume(host, scene, out), f"{limit // _MIB} MiB")
    remove(out)
    return found.tally(f"RLIMIT_AS {limits[0] // _MIB} to {limits[-1] // _MIB} MiB", _well(found))


def _without_scipy(folder: Path) -> dict[str, str]:
    """Variables under which a process finds no scipy: llmq does not ask for it, but Numba uses it if it is there.

    The OpenBLAS in it waits for ever where there is no memory to load it.
    """
    folder.mkdir()
    (folder / "scipy.py").write_text("raise ImportError('hidden')\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), environment()["PYTHONPATH"]])}


def _complaint(outcome: Outcome, state: str) -> str:
    """What is wrong with how a run ended: neither an abort of LLVM nor an error without a reason, but a traceback."""
    if state.startswith("!"):
        return state[1:]
    gave_up = outcome.code in _ABORTED or _NO_REASON in outcome.stderr
    if gave_up and "Traceback" not in outcome.stderr:
        return ""
    return complaint(outcome, (0, 5))


def _well(found: Findings) -> str:
    aborted = sum(found.codes[code] for code in _ABORTED)
    return f"{found.runs - len(found.wrong)} ended with the same bytes once there was memory; LLVM aborted {aborted}"


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Sweep limits in steps of 1 MiB where runs are forked, and of 50 MiB for whole processes; few where `quick`."""
    scene, out = Scene("with little memory", make_subject(scratch)), scratch / "out"
    with Host(scratch / "host") as host:
        host.run(Request(("--version",)))  # all is imported afterwards
        found = []
        for kind, base in host.memory().items():
            limits = range(base, base + 160 * _MIB, (40 if quick else 1) * _MIB)
            found.append(_forked(host, scene, out, kind, limits))
        step = 800 if quick else 50
        found.append(_processes(host, scene, out, range(300 * _MIB, 2048 * _MIB, step * _MIB)))
    for tally in found:
        tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
    return found
