"""Taking turns: tasks that are compared run one after the other, again and again, so that a busy moment hits all."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmq.benchmarks.energy import EnergyMeter
from llmq.errors import UsageError
from llmq_kernels.jit import set_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Timing", "take_turns", "use_threads"]


@dataclass(frozen=True)
class Timing:
    """The runs of one task.

    Parameters
    ----------
    runs : list of float
        Seconds.
    energy : list of float or None
        Joules, None where they cannot be read.
    """

    runs: list[float] = field(default_factory=list)
    energy: list[float | None] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median run."""
        return statistics.median(self.runs)

    @property
    def joules(self) -> float | None:
        """The median of the energies, or None."""
        known = [joules for joules in self.energy if joules is not None]
        return statistics.median(known) if known else None


def take_turns(
    tasks: Mapping[str, Callable[[], float | None]], runs: int, done: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Run each task once to warm up, then all of them in turn, `runs` times.

    Parameters
    ----------
    tasks : mapping of str to callable
        One that returns a number has timed itself, in seconds; the whole call counts otherwise.
    runs : int
        At least one.
    done : callable
        Told after every call.

    Returns
    -------
    dict of str to Timing
    """
    timings = {name: Timing() for name in tasks}
    meter = EnergyMeter()
    for turn in range(runs + 1):
        for name, task in tasks.items():
            joules, began = meter.joules(), time.perf_counter()
            own = task()
            seconds, spent = time.perf_counter() - began, meter.joules()
            if turn:
                timings[name].runs.append(seconds if own is None else own)
                timings[name].energy.append(None if joules is None or spent is None else spent - joules)
            done()
    return timings


def use_threads(count: int) -> None:
    """Run kernels on `count` threads from now on; UsageError if there are not so many."""
    try:
        set_threads(count)
    except ValueError as error:
        raise UsageError(str(error)) from None
