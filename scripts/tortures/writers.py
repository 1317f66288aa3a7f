"""Several processes that write the same output at once, with locks, and with locks that let everyone in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tortures.faults import Scene, resume
from tortures.findings import Findings
from tortures.hosting import Host, start
from tortures.shim import build
from tortures.subject import make_subject, remove, state_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.tally import Tally

__all__ = ["run"]


def _together(host: Host, scene: Scene, scratch: Path, *, processes: int, rounds: int, locked: bool) -> Tally:
    """Start so many processes at once, so many times."""
    out = scratch / "out"
    shim = None if locked else build(scratch)
    variables = {} if locked else {"TORTURE_WATCH": out, "TORTURE_UNLOCKED": 1}
    found, codes = Findings(), Counter[int]()
    for _ in range(rounds):
        scene.prepare(out)
        arguments = scene.request(out).arguments
        started = [start(arguments, shim=shim, variables=variables) for _ in range(processes)]
        ended = [(process.communicate()[1], process.returncode) for process in started]
        codes.update(code for _, code in ended)
        wrong = _complaint(ended, state_of(out, scene.finished), locked=locked) or resume(host, scene, out)
        found.add(0, wrong)
    remove(out)
    found.codes = codes
    return found.tally(f"{processes} at once, {'locked' if locked else 'where every lock is granted'}", "")


def _complaint(ended: list[tuple[str, int]], state: str, *, locked: bool) -> str:
    if state.startswith("!"):
        return state[1:]
    if any("Traceback" in text for text, _ in ended):
        return f"a traceback: {ended}"
    allowed = (0, 2) if locked else (0, 2, 3, 5)
    if (locked and state != "whole") or any(code not in allowed for _, code in ended):
        return f"{state} after {ended}"
    return ""


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Let 2 to 8 processes meet, ten times each; 2 of them once where `quick`."""
    scene = Scene("together", make_subject(scratch))
    rounds = 1 if quick else 10
    with Host(scratch / "host") as host:
        found = [
            _together(host, scene, scratch, processes=processes, rounds=rounds, locked=locked)
            for processes in ((2,) if quick else (2, 3, 5, 8))
            for locked in (True, False)
        ]
    for tally in found:
        tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
    return found
