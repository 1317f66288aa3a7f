"""Memory of another process while it runs: what is its own, what is mapped, and what its cgroup counts."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmq.system.memory import Memory, cgroup_memory, memory_of
from llmq.system.series import Series

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Sample", "Sampler"]

_INTERVAL: Final = 0.02
_KEPT: Final = 2048
_DEAR: Final = 25
"""The share of a file that others map too costs a walk over all pages: it is asked for so many times less often."""


@dataclass(frozen=True)
class Sample(Memory):
    """Memory at a moment.

    Parameters
    ----------
    time : float
        Of `time.time`.
    """

    time: float


class Sampler:
    """Samples a process from entering to leaving the block, or until it ends.

    Parameters
    ----------
    pid : int

    Attributes
    ----------
    peak_pss : int or None
        Largest proportional set size seen: mapped files that several processes share count in parts. None where the
        system does not tell.
    cgroup_peak : int or None
        The most that the cgroup of the process has counted since the block began, its page cache included; None where
        the system does not tell.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._series: Series[Sample] = Series(_KEPT, height=lambda sample: sample.rss)
        self.peak_pss: int | None = None
        self.cgroup_peak: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmq-sampler", daemon=True)

    @property
    def samples(self) -> list[Sample]:
        """In order, at most 2048, the peak among them."""
        return self._series.samples

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        turn = 0
        while True:
            found = memory_of(self._pid)
            if found is None or not found.rss:
                break
            self._series.add(Sample(found.anon, found.file, found.rss, time.time()))
            if turn % _DEAR == 0:
                self.peak_pss = _larger(self.peak_pss, _pss(self._pid))
                self.cgroup_peak = _larger(self.cgroup_peak, cgroup_memory(self._pid))
            turn += 1
            if self._stop.wait(_INTERVAL):
                break
        self._series.finish()


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _pss(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), None)
