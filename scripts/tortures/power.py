"""A machine that stops at any call of the system: what was not synced by then is lost, in part or as a whole.

A run is killed at a call, and then its folder is brought into a state that a disk may be in after a power failure:
bytes that no sync covered become zeros, or the file is as short as when it was synced, and the last of the names that
were made or changed, and not synced with their folder, are undone.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tortures.faults import resume, scenes
from tortures.findings import Findings
from tortures.hosting import Host
from tortures.shim import Action, Fault
from tortures.subject import make_subject, remove, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tortures.faults import Scene
    from tortures.tally import Tally

__all__ = ["Disk", "run"]

_STRIDE: Final = 43


@dataclass
class _File:
    """What is not on the disk of a file: ranges that were written, and the size it had when it was synced."""

    size: int = 0
    synced: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)


class Disk:
    """What a power failure would leave, by a log of calls from `Host.run`."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._names: list[tuple[str, str]] = []  # (made, before): nothing before a file that was created

    def replay(self, log: Path) -> None:
        """Take all calls in."""
        for line in log.read_text(encoding="utf-8").splitlines():
            _, name, path, second, place, result = line.split("\t")
            if int(result) >= 0:
                self._take(name, path, second, int(place), int(result))

    def _take(self, name: str, path: str, second: str, place: int, result: int) -> None:
        if name == "open" and place & os.O_CREAT and path not in self._files:
            self._files[path] = _File()
            self._names.append((path, ""))
        elif name in ("write", "pwrite") and path in self._files:
            file = self._files[path]
            file.ranges.append((place, place + result))
            file.size = max(file.size, place + result)
        elif name in ("ftruncate", "fallocate") and path in self._files:
            self._files[path].size = place
        elif name in ("fsync", "fdatasync"):
            self._sync(path)
        elif name == "rename":
            self._files[second] = self._files.pop(path, _File())
            self._names.append((second, path))
        elif name in ("unlink", "rmdir"):
            self._files.pop(path, None)
            self._names = [(made, before) for made, before in self._names if made != path]

    def _sync(self, path: str) -> None:
        file = self._files.get(path)
        if file is not None:
            file.ranges, file.synced = [], file.size
        self._names = [names for names in self._names if str(Path(names[0]).parent) != path]

    def lose(self, draw: random.Random) -> int:
        """Undo some of what is not synced, and return how much there was."""
        for path, file in self._files.items():
            if file.ranges and os.path.lexists(path):
                _spoil(Path(path), file, draw)
        lost = draw.randint(0, len(self._names))
        for made, before in reversed(self._names[len(self._names) - lost :]):
            if before and not os.path.lexists(before) and Path(before).parent.is_dir():
                Path(made).replace(before)
            elif not before:
                Path(made).unlink(missing_ok=True)
        return lost + sum(len(file.ranges) for file in self._files.values())


def _spoil(path: Path, file: _File, draw: random.Random) -> None:
    if draw.random() < 0.3:
        os.truncate(path, min(file.synced, path.stat().st_size))
        return
    share = draw.choice((0.2, 0.5, 1.0))
    with path.open("r+b") as opened:
        for start, end in file.ranges:
            if draw.random() < share:
                opened.seek(start)
                opened.write(bytes(end - start))


def _sweep(host: Host, scene: Scene, out: Path, draw: random.Random, calls: range | None) -> Tally:
    """Let the power fail at every call, or at those in `calls`."""
    found, lost = Findings(), 0
    for at in calls or count(1):
        scene.prepare(out)
        fault = Fault(at=at, action=Action.KILL_BEFORE)
        outcome = host.run(scene.request(out, fault=fault), logged=True)
        if not outcome.met:
            break
        disk = Disk()
        disk.replay(host.log)
        lost += disk.lose(draw) > 0
        state = state_of(out, scene.finished)
        wrong = state[1:] if state.startswith("!") else resume(host, scene, out)
        found.add(outcome.code, wrong, f"call {at}, {outcome.what.replace(str(out.parent), '')}, left {state}")
    remove(out)
    detail = f"{lost} lost something; {found.runs - len(found.wrong)} then ended with the same bytes"
    return found.tally(f"{scene.name}: power lost", detail)


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Let the power fail at every call of every scene, or at every 43rd."""
    subject, draw, found = make_subject(scratch), random.Random(4), []  # noqa: S311
    with Host(scratch / "host") as host:
        for scene in scenes(host, subject, scratch):
            calls = range(1, 2000, _STRIDE) if quick else None
            tally = _sweep(host, scene, scratch / "out", draw, calls)
            tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
            found.append(tally)
    return found
