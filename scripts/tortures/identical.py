"""The same bytes, whatever the number of threads, the threading layer and the memory, interrupted or not."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tortures.findings import Findings
from tortures.hosting import spawn
from tortures.shim import Action, build
from tortures.subject import Subject, digests, remove, write_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.tally import Tally

__all__ = ["layers", "run"]

_THREADS: Final = (1, 2, 3, 8)
_MEMORY: Final = (None, "400MiB", "200MiB")
_METHODS: Final = ("mse", "hqq")
_STRIDE: Final = 17


@dataclass(frozen=True)
class _Way:
    """How a checkpoint is quantized, none of which may show in the bytes."""

    threads: int
    layer: str
    memory: str | None
    resumed: bool


def layers() -> tuple[str, ...]:
    """Threading layers of Numba that can be had here."""
    try:
        importlib.import_module("numba.np.ufunc.tbbpool")
    except ImportError:  # libtbb is not there
        return ("omp", "workqueue")
    return ("omp", "workqueue", "tbb")


def _ways() -> list[_Way]:
    return [_Way(*values) for values in itertools.product(_THREADS, layers(), _MEMORY, (False, True))]


def _complaint(subject: Subject, out: Path, shim: Path, way: _Way) -> str:
    """Quantize in one way; what is wrong with the end or the bytes."""
    arguments = subject.arguments(out, "--threads", str(way.threads))
    arguments += ["--max-memory", way.memory] if way.memory else []
    variables: dict[str, object] = {
        "NUMBA_THREADING_LAYER": way.layer,
        "NUMBA_NUM_THREADS": max(way.threads, 2),
    }
    if way.resumed:
        fault = {"TORTURE_WATCH": out, "TORTURE_AT": 150, "TORTURE_ACTION": int(Action.KILL_BEFORE)}
        stopped = spawn(arguments, shim=shim, variables=variables | fault)
        if stopped.code >= 0:
            return f"was to be killed, but ended with {stopped.code}: {stopped.stderr[-300:]}"
    outcome = spawn(arguments, variables=variables)
    if outcome.code:
        return outcome.stderr[-300:]
    return "" if digests(out) == subject.expected else "other bytes"


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Quantize in all ways by two methods, or in every 17th by one."""
    shim, out = build(scratch), scratch / "out"
    source = write_source(scratch / "source", hidden_size=256, intermediate_size=704, vocab_size=4096)
    tallies = []
    for method in _METHODS[: 1 if quick else None]:
        flags = ("--method", method, "--max-shard-size", "1MB", "--asymmetric", "--lm-head", "keep")
        outcome = spawn(Subject(source, flags, {}).arguments(out))
        assert outcome.code == 0, outcome.stderr
        subject, found = Subject(source, flags, digests(out)), Findings()
        for way in _ways()[:: _STRIDE if quick else None]:
            remove(out)
            found.add(0, _complaint(subject, out, shim, way), str(way))
        remove(out)
        skipped = "" if "tbb" in layers() else "; tbb skipped: it is not installed"
        detail = (
            f"threads 1, 2, 3, 8; layers {', '.join(layers())}; memory unlimited, 400 and 200 MiB; killed and resumed"
        )
        tally = found.tally(method, f"{detail}, or not{skipped}")
        tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
        tallies.append(tally)
    return tallies
