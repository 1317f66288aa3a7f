"""Section `fuzz` of `make torture`: the parsers of strangers' files, executed millions of times."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from tortures.hostile import child_environment
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RUNS", "SHARES", "run"]

RUNS: Final = 2_000_000
"""Executions in all."""

_QUICK_RUNS: Final = 8_000

SHARES: Final = {
    "header": 0.35, "index": 0.15, "json": 0.15, "manifest": 0.1, "config": 0.1, "recipe": 0.05, "schemes": 0.05,
    "packed": 0.05,
}  # fmt: skip
"""Of the executions, by target."""

_SIDE_BY_SIDE: Final = 2
_SECONDS: Final = 3600


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Fuzz all targets.

    Parameters
    ----------
    scratch : Path
        An empty folder.
    quick : bool
        A few thousand executions only.
    tell : callable
        Is told how far it is.
    """
    runs = _QUICK_RUNS if quick else RUNS
    guide = "guided by atheris" if find_spec("atheris") else "atheris is not installed: mutation alone"
    tell(f"fuzz: {runs:,} executions, {guide}")
    scratch.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> Tally:
        found = _fuzz(name, int(runs * SHARES[name]), scratch)
        tell(f"fuzz: {name}: {found.runs:,} executions")
        return found

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        return list(pool.map(one, SHARES))


def _fuzz(name: str, runs: int, scratch: Path) -> Tally:
    command = [sys.executable, "-m", "tortures.fuzz_child", name, str(runs), str(scratch)]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    report = scratch / f"{name}.json"
    if not report.exists():
        return Tally(f"fuzz: {name}", 0, 1, f"ended with {done.returncode}: {done.stderr[-300:]}")
    found: dict[str, Any] = json.loads(report.read_text())
    counts = {kind: found[kind] for kind in ("crashes", "hangs", "disagreements")}
    missing = found["runs"] < runs
    wrong = sum(counts.values()) + missing
    detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    detail += f"; slowest {1000 * found['slowest']:.0f} ms, {found['megabytes']} MB"
    if found["examples"]:
        detail += f"; {found['examples'][0]}"
    if missing:
        detail += f"; only {found['runs']} of {runs}: {done.stderr[-300:]}"
    return Tally(f"fuzz: {name}", found["runs"], wrong, detail)
