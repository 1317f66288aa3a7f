"""Ctrl-C, SIGTERM and SIGHUP at random times in runs of some seconds: how soon they end, and how."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING, Final

from tortures.faults import Scene
from tortures.hosting import Host, Request, spawn
from tortures.kills import Chain
from tortures.subject import Subject, digests, write_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tortures.tally import Tally

__all__ = ["percentile", "run"]

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CODES: Final = (0, 75, 130, *(-number for number in _NUMBERS))
_MOST_SECONDS: Final = 1.0
_SIZES: Final = {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 1024, "num_hidden_layers": 2}


def percentile(values: list[float], share: float) -> float:
    """The value that a share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _subject(host: Host, scratch: Path, *, quick: bool) -> Subject:
    """A larger checkpoint, and a method that takes its time."""
    source = write_source(scratch / "source", **({} if quick else _SIZES))
    flags = ("--method", "mse" if quick else "hqq", "--max-shard-size", "5MB", "--threads", "1")
    out = scratch / "expected"
    outcome = host.run(Request(Subject(source, flags, {}).arguments(out)))
    assert outcome.code == 0, outcome.stderr
    return Subject(source, flags, digests(out))


def _during(host: Host, subject: Subject, out: Path, draw: random.Random, runs: int, *, twice: bool) -> Tally:
    """Send one or two signals to each of so many runs into one folder."""
    scene = Scene("interrupted", subject)
    chain = Chain(host, scene, out, _CODES)
    latencies = []
    for count in range(runs):
        number, first = _NUMBERS[count % len(_NUMBERS)], draw.uniform(0, chain.seconds)
        signals = [(first, number)] + ([(first + draw.uniform(0, 0.2), number)] if twice else [])
        outcome = host.run(scene.request(out, signals=signals))
        chain.add(outcome)
        if outcome.code:
            latencies.append(outcome.after_signal)
    return _timed(chain, "two signals" if twice else "one signal", latencies)


def _starting(host: Host, subject: Subject, out: Path, draw: random.Random, runs: int) -> Tally:
    """Interrupt whole processes, most of them while Python imports."""
    scene = Scene("starting", subject)
    chain = Chain(host, scene, out, _CODES)
    latencies = []
    for count in range(runs):
        number = _NUMBERS[count % len(_NUMBERS)]
        outcome = spawn(scene.request(out).arguments, signals=[(draw.uniform(0.1, 1.5), number)])
        chain.add(outcome)
        if outcome.code:
            latencies.append(outcome.after_signal)
    return _timed(chain, "processes that start", latencies)


def _timed(chain: Chain, what: str, latencies: list[float]) -> Tally:
    median, slow = percentile(latencies, 0.5), percentile(latencies, 0.99)
    if slow > _MOST_SECONDS:
        chain.found.wrong.append(f"99 % end within {slow:.2f} s")
    detail = (
        f"a run takes {chain.seconds:.1f} s; from the signal to the end {median:.2f} s (median), {slow:.2f} s (99 %)"
    )
    detail += f", {max(latencies, default=0.0):.2f} s (most); {chain.completed} outputs became whole meanwhile"
    return chain.tally(what, detail)


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Interrupt 320 runs, or eleven."""
    draw = random.Random(2)  # noqa: S311
    once, twice, starting = (6, 3, 2) if quick else (200, 60, 60)
    out = scratch / "out"
    with Host(scratch / "host") as host:
        subject = _subject(host, scratch, quick=quick)
        found = [
            _during(host, subject, out, draw, once, twice=False),
            _during(host, subject, out, draw, twice, twice=True),
            _starting(host, subject, out, draw, starting),
        ]
    for tally in found:
        tell(f"{tally.what}: {tally.runs} runs, {tally.wrong} wrong; {tally.detail}")
    return found
