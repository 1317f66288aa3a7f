"""A fault at every call of the system that a run makes, one run each: in the manner of SQLite's tests.

After each the output must be absent, unfinished or whole; the command must have said what happened in one line; and the
same command must then end with the same bytes as an undisturbed run and leave nothing behind.
"""

from __future__ import annotations

import errno
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from tortures.findings import Findings
from tortures.hosting import Host, Request
from tortures.shim import Action, Calls, Fault
from tortures.subject import Subject, complaint, digests, make_subject, remove, state_of
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tortures.hosting import Outcome

__all__ = ["KINDS", "Kind", "Scene", "resume", "run", "scenes", "sweep"]

_CHANGES: Final = Calls.CREATE | Calls.WRITE | Calls.SYNC | Calls.NAME | Calls.SIZE
_SAID: Final = (2, 3, 5)
_STRIDE: Final = 29
"""Of a quick run: few calls of each kind, but over all kinds many."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Parameters
    ----------
    name : str
    fault : Fault
        Its `at` is set run by run.
    codes : tuple of int
        With which a run that met it may end.
    """

    name: str
    fault: Fault
    codes: tuple[int, ...]


KINDS: Final = (
    Kind("EIO once", Fault(action=Action.FAIL, error=errno.EIO), _SAID),
    Kind("EIO for ever", Fault(action=Action.FAIL, error=errno.EIO, forever=True), _SAID),
    Kind("no space once", Fault(action=Action.FAIL, error=errno.ENOSPC, classes=_CHANGES), (5,)),
    Kind("no space for ever", Fault(action=Action.FAIL, error=errno.ENOSPC, forever=True, classes=_CHANGES), (5,)),
    Kind("no descriptors once", Fault(action=Action.FAIL, error=errno.EMFILE, classes=Calls.OPEN), _SAID),
    Kind("short once", Fault(action=Action.SHORT, classes=Calls.READ | Calls.WRITE), (0,)),
    Kind("short for ever", Fault(action=Action.SHORT, forever=True, classes=Calls.READ | Calls.WRITE), (0,)),
    Kind(
        "interrupted once",
        Fault(
            action=Action.FAIL,
            error=errno.EINTR,
            classes=Calls.OPEN | Calls.READ | Calls.WRITE | Calls.SYNC | Calls.SIZE,
        ),
        (0,),
    ),
    Kind("killed before", Fault(action=Action.KILL_BEFORE), (-signal.SIGKILL,)),
    Kind("killed after", Fault(action=Action.KILL_AFTER), (-signal.SIGKILL,)),
    Kind("killed in a torn write", Fault(action=Action.TORN, classes=Calls.WRITE), (-signal.SIGKILL,)),
    Kind("Ctrl-C", Fault(action=Action.SIGNAL, error=signal.SIGINT), (0, 75, 130)),
    Kind("SIGTERM", Fault(action=Action.SIGNAL, error=signal.SIGTERM), (0, 75, 130, -signal.SIGTERM)),
)
"""Every kind of fault."""


@dataclass(frozen=True)
class Scene:
    """What a run finds, and what it may leave.

    Parameters
    ----------
    name : str
    subject : Subject
    flags : tuple of str
        Further ones of the command.
    before : Path or None
        What the output folder holds before; it is copied.
    """

    name: str
    subject: Subject
    flags: tuple[str, ...] = ()
    before: Path | None = None

    def prepare(self, out: Path) -> None:
        """Put the output folder into its state before the run."""
        remove(out)
        if self.before is not None:
            shutil.copytree(self.before, out)

    def request(self, out: Path, **more: Any) -> Request:
        """The run; `more` is what else a `Request` says."""
        return Request(self.subject.arguments(out, *self.flags), watch=(self.subject.source, out), **more)

    @property
    def finished(self) -> dict[str, Mapping[str, str]]:
        """Digests of the outputs that may be there when a run has ended somehow, by name."""
        found = {"whole": self.subject.expected}
        return found | ({"old": digests(self.before)} if self.before is not None and self.flags else {})


def scenes(host: Host, subject: Subject, scratch: Path) -> tuple[Scene, ...]:
    """A new output; going on with one that was killed halfway; replacing an older one."""
    halfway, old = scratch / "halfway", scratch / "old"
    host.warm(subject.arguments(scratch / "warm"))
    fresh = Scene("new", subject)
    calls = host.run(fresh.request(halfway)).calls
    remove(halfway)
    host.run(fresh.request(halfway, fault=Fault(at=calls // 2, action=Action.KILL_BEFORE)))
    assert state_of(halfway, {}) == "unfinished"
    earlier = replace(subject, flags=(*subject.flags, "--bits", "8", "--embeddings", "8", "--max-shard-size", "20KB"))
    assert host.run(Request(earlier.arguments(old))).code == 0
    return (
        fresh,
        Scene("resumed", subject, before=halfway),
        Scene("replaced", subject, flags=("--overwrite",), before=old),
    )


def sweep(host: Host, scene: Scene, kind: Kind, out: Path, *, calls: range | None = None) -> Tally:
    """Run with a fault at every call, or at those in `calls`, until a run ends without having met its fault."""
    finished, found, states = scene.finished, Findings(), Counter[str]()
    for at in calls or count(1):
        scene.prepare(out)
        outcome = host.run(scene.request(out, fault=replace(kind.fault, at=at)))
        if not outcome.met:
            break
        state = state_of(out, finished)
        states[state if state[0] != "!" else "wrong"] += 1
        complaint = _verdict(outcome, kind, state) or resume(host, scene, out)
        found.add(outcome.code, complaint, f"call {at}, {outcome.what.replace(str(out.parent), '')}")
    remove(out)
    ended = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    detail = f"left {ended}; {found.runs - len(found.wrong)} then ended with the same bytes"
    return found.tally(f"{scene.name}: {kind.name}", detail)


def _verdict(outcome: Outcome, kind: Kind, state: str) -> str:
    if state.startswith("!"):
        return state[1:]
    # What was looked for may be done without, and a folder that is there; nothing that is written may.
    harmless = state == "whole" and outcome.what.split()[0] in ("stat", "fstat", "opendir", "readdir", "mkdir")
    found = complaint(outcome, (*kind.codes, 0) if harmless else kind.codes)
    if not found and outcome.code == 0 and state != "whole":
        return f"exit code 0, but the output is {state}"
    return found


def resume(host: Host, scene: Scene, out: Path) -> str:
    """Run the same command undisturbed; what is wrong with its end or what it leaves, or nothing."""
    again = host.run(scene.request(out))
    found = complaint(again, (0,))
    if found:
        return f"the next run: {found}"
    if digests(out) != scene.subject.expected:
        return f"the next run left {sorted(digests(out))}, with other bytes or leftovers"
    return ""


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Sweep every kind of fault over every scene; `quick` takes every 29th call, each kind beginning elsewhere."""
    subject = make_subject(scratch)
    by_kind: dict[str, list[Tally]] = {kind.name: [] for kind in KINDS}
    with Host(scratch / "host") as host:
        for scene in scenes(host, subject, scratch):
            scene.prepare(scratch / "out")
            calls = host.run(scene.request(scratch / "out")).calls
            for number, kind in enumerate(KINDS):
                chosen = range(1 + 7 * number % _STRIDE, calls + 1, _STRIDE) if quick else None
                tally = sweep(host, scene, kind, scratch / "out", calls=chosen)
                tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
                by_kind[kind.name].append(tally)
    return [_together(name, tallies) for name, tallies in by_kind.items()]


def _together(name: str, tallies: list[Tally]) -> Tally:
    """One row for the scenes of a kind of fault."""
    runs, wrong = sum(tally.runs for tally in tallies), sum(tally.wrong for tally in tallies)
    counts = ", ".join(f"{tally.runs} of {tally.what.split(':')[0]} outputs" for tally in tallies)
    bad = [tally.detail for tally in tallies if tally.wrong]
    return Tally(name, runs, wrong, "; ".join([f"{counts}: {runs - wrong} then ended with the same bytes", *bad]))
