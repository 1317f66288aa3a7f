"""SIGKILL at random times, in runs that begin, go on and replace; some runs are killed over and over."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING, Final

from tortures.faults import resume, scenes
from tortures.findings import Findings
from tortures.hosting import Host, spawn
from tortures.subject import complaint, digests, make_subject, remove, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.faults import Scene
    from tortures.hosting import Outcome
    from tortures.tally import Tally

__all__ = ["Chain", "run"]

_CODES: Final = (-signal.SIGKILL, 0)


class Chain:
    """Runs of one command into one folder, each stopped, until one ends well; then it begins anew.

    Parameters
    ----------
    host : Host
    scene : Scene
    out : Path
    codes : tuple of int
        With which a run that was stopped may end.

    Attributes
    ----------
    found : Findings
    seconds : float
        How long an undisturbed run takes.
    completed : int
        Outputs that became whole.
    """

    def __init__(self, host: Host, scene: Scene, out: Path, codes: tuple[int, ...]) -> None:
        self.found = Findings()
        self.completed = 0
        self._host, self.scene, self.out, self._codes = host, scene, out, codes
        self._finished = scene.finished
        scene.prepare(out)
        self.seconds = host.run(scene.request(out)).seconds
        scene.prepare(out)

    def add(self, outcome: Outcome, *, finish: bool = False) -> None:
        """Judge a run that was stopped, or ended before it could be; `finish` goes on with it undisturbed."""
        state = state_of(self.out, self._finished)
        found = state[1:] if state.startswith("!") else complaint(outcome, self._codes)
        ended = outcome.code == 0
        if ended and not found and digests(self.out) != self.scene.subject.expected:
            found = "ended with other bytes or leftovers"
        if finish:
            found = found or self.finish()
        self.found.add(outcome.code, found)
        if ended:
            self.completed += 1
        if ended or finish or found:
            self.scene.prepare(self.out)

    def finish(self) -> str:
        """Run undisturbed, and return what is wrong with the end of that."""
        return resume(self._host, self.scene, self.out)

    def tally(self, what: str, detail: str = "") -> Tally:
        """Finish, and make a row for the table."""
        found = self.finish()
        if found:
            self.found.wrong.append(found)
        remove(self.out)
        return self.found.tally(what, detail or f"{self.completed} outputs became whole meanwhile, and one in the end")


def _forked(host: Host, scene: Scene, out: Path, draw: random.Random, kills: int, *, once: bool) -> Tally:
    """Kill so many runs, and go on undisturbed after each, or go on with the next that is killed."""
    chain = Chain(host, scene, out, _CODES)
    for _ in range(kills):
        signals = [(draw.uniform(0, chain.seconds), signal.SIGKILL)]
        chain.add(host.run(scene.request(out, signals=signals)), finish=once)
    what = f"{scene.name}: {'each killed run then finished' if once else 'killed again and again'}"
    return chain.tally(what, f"{chain.found.runs - len(chain.found.wrong)} of the next runs ended well" if once else "")


def _processes(host: Host, scene: Scene, out: Path, draw: random.Random, kills: int) -> Tally:
    """Kill processes of their own, while they start too."""
    chain = Chain(host, scene, out, _CODES)
    arguments = scene.request(out).arguments
    seconds = spawn(arguments).seconds
    scene.prepare(out)
    for _ in range(kills):
        chain.add(spawn(arguments, signals=[(draw.uniform(0, seconds), signal.SIGKILL)]))
    return chain.tally("whole processes, killed again and again")


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Kill 460 runs, or seven."""
    subject = make_subject(scratch)
    draw = random.Random(1)  # noqa: S311
    once, often, processes = (1, 1, 1) if quick else (100, 40, 40)
    out, found = scratch / "out", []
    with Host(scratch / "host") as host:
        every = scenes(host, subject, scratch)
        for scene in every:
            found.append(_forked(host, scene, out, draw, once, once=True))
            found.append(_forked(host, scene, out, draw, often, once=False))
        found.append(_processes(host, every[0], out, draw, processes))
    for tally in found:
        tell(f"{tally.what}: {tally.runs} kills, {tally.wrong} wrong; {tally.detail}")
    return found
