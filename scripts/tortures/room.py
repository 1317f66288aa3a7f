"""Disks that are too small, and files that may not grow: a plain error, and on a larger disk the same bytes."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

from tortures.faults import Scene, resume
from tortures.findings import Findings
from tortures.hosting import Host
from tortures.subject import complaint, make_subject, remove, state_of
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.hosting import Outcome

__all__ = ["run"]

_PAGE: Final = 4096
_ENOUGH: Final = 8 << 20


def _files(host: Host, scene: Scene, scratch: Path, *, quick: bool) -> Tally:
    """Limit the size of a file to less than the largest, in 64 or 4 steps."""
    out, found = scratch / "out", Findings()
    largest = max(path.stat().st_size for path in (scratch / "expected").iterdir())
    for limit in range(1024, largest + largest // 8, largest // (4 if quick else 64)):
        scene.prepare(out)
        outcome = host.run(scene.request(out, limits={"FSIZE": limit}))
        wrong = _complaint(outcome, state_of(out, scene.finished)) or resume(host, scene, out)
        found.add(outcome.code, wrong, f"files of {limit} bytes")
    remove(out)
    return found.tally("files that may not grow (RLIMIT_FSIZE)", _well(found))


def _complaint(outcome: Outcome, state: str) -> str:
    if state.startswith("!"):
        return state[1:]
    if outcome.code == 0 and state != "whole":
        return f"exit code 0, but the output is {state}"
    return complaint(outcome, (0, 5))


def _disks(host: Host, scene: Scene, scratch: Path, *, quick: bool) -> Tally:
    """Mount disks of 16 kB to twice what the output needs, and let each grow afterwards."""
    what, found, disk = "disks of every size (tmpfs)", Findings(), scratch / "disk"
    disk.mkdir()
    if not _mount(disk, "size=64k"):
        return Tally(what, 0, 0, "skipped: mounting needs root")
    out = disk / "out"
    need = sum(path.stat().st_size for path in (scratch / "expected").iterdir())
    try:
        for size in range(4 * _PAGE, 2 * need, need // 2 if quick else 2 * _PAGE):
            _mount(disk, f"remount,size={size}")
            outcome = host.run(scene.request(out))
            state = state_of(out, scene.finished)
            _mount(disk, f"remount,size={_ENOUGH}")
            found.add(outcome.code, _complaint(outcome, state) or resume(host, scene, out), f"a disk of {size} bytes")
            remove(out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607
    return found.tally(what, _well(found))


def _mount(disk: Path, options: str) -> bool:
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _well(found: Findings) -> str:
    return f"{found.runs - len(found.wrong)} ended with the same bytes once there was room"


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Limit files in steps of a 64th of the largest, and disks in steps of 8 kB; a few of each where `quick`."""
    scene = Scene("with little room", make_subject(scratch))
    with Host(scratch / "host") as host:
        found = [_files(host, scene, scratch, quick=quick), _disks(host, scene, scratch, quick=quick)]
    for tally in found:
        tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
    return found
