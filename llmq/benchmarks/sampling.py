"""Memory of another process while it runs: what is its own, what is mapped, and what its cgroup counts."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmq.system.memory import memory_of

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Sample", "Sampler"]

_INTERVAL: Final = 0.02
_KEPT: Final = 2048
_DEAR: Final = 25
"""The share of a file that others map too costs a walk over all pages: it is asked for so many times less often."""


@dataclass(frozen=True)
class Sample:
    """Memory at a moment.

    Parameters
    ----------
    time : float
        Of `time.time`.
    anon, file : int
        Anonymous bytes, and resident bytes of mapped files.
    """

    time: float
    anon: int
    file: int

    @property
    def total(self) -> int:
        """All resident bytes."""
        return self.anon + self.file


class Sampler:
    """Samples a process from entering to leaving the block, or until it ends.

    Parameters
    ----------
    pid : int

    Attributes
    ----------
    samples : list of Sample
        In order; of every so many neighbours the highest, where there would be more than 2048.
    peak_pss : int or None
        Largest proportional set size seen: mapped files that several processes share count in parts. None where the
        system does not tell.
    cgroup_peak : int or None
        The most that the cgroup of the process has counted since the block began, its page cache included; None where
        the system does not tell.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.samples: list[Sample] = []
        self.peak_pss: int | None = None
        self.cgroup_peak: int | None = None
        self._counter = _cgroup_counter(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmq-sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        turn, stride, waiting = 0, 1, list[Sample]()
        while True:
            found = memory_of(self._pid)
            if found is None or not found.rss:
                break
            waiting.append(Sample(time.time(), found.anon, found.file))
            if len(waiting) >= stride:
                self.samples.append(_highest(waiting))
                waiting.clear()
            if len(self.samples) >= _KEPT:
                self.samples = [_highest(self.samples[i : i + 2]) for i in range(0, len(self.samples), 2)]
                stride *= 2
            if turn % _DEAR == 0:
                self.peak_pss = _larger(self.peak_pss, _pss(self._pid))
                self.cgroup_peak = _larger(self.cgroup_peak, _number(self._counter))
            turn += 1
            if self._stop.wait(_INTERVAL):
                break
        if waiting:
            self.samples.append(_highest(waiting))


def _highest(samples: list[Sample]) -> Sample:
    return max(samples, key=lambda sample: sample.total)


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _pss(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), None)


def _cgroup_counter(pid: int) -> Path | None:
    """File that tells what the innermost cgroup of a process counts now, or None."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base, name = Path("/sys/fs/cgroup"), "memory.current"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            base, name = base / "memory", "memory.usage_in_bytes"
        for folder in (base / path.lstrip("/"), base):
            if (folder / name).is_file():
                return folder / name
    return None


def _number(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
