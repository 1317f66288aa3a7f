"""Memory of this process, now and at its peak, and of the machine, cgroup limits included. All in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmq.system.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = [
    "Memory",
    "PeakMemory",
    "available_memory",
    "cgroup_memory",
    "current_memory",
    "lock_memory",
    "memory_of",
    "process_limit",
    "total_memory",
]

_PROCESSES: Final = Path("/proc")
_SPARE: Final = 512 << 20
"""Memory of the machine that is left to others, at most."""

_KEPT: Final = 512
"""Samples of a `PeakMemory` that are kept: a power of two."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process.

    Parameters
    ----------
    anon : int
        Anonymous bytes (RssAnon): buffers, heaps and stacks. Equal to `rss` where the system does not tell.
    file : int
        Resident bytes of mapped files (RssFile).
    rss : int
        All resident bytes (VmRSS).
    """

    anon: int
    file: int
    rss: int


def current_memory() -> Memory:
    """Memory of this process now; where the system tells only the peak so far, that; zeros where it tells nothing."""
    found = memory_of("self")
    if found is None:
        rss = _peak_rss()
        return Memory(anon=rss, file=0, rss=rss)
    return found


def memory_of(pid: int | str) -> Memory | None:
    """Memory of a process now; None where it has ended, or the system does not tell."""
    try:
        text = (_PROCESSES / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    kibibytes = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile", "VmRSS"):
            kibibytes[key] = int(value.split()[0])
    rss = 1024 * kibibytes.get("VmRSS", 0)
    return Memory(anon=1024 * kibibytes.get("RssAnon", rss // 1024), file=1024 * kibibytes.get("RssFile", 0), rss=rss)


def _peak_rss() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class PeakMemory:
    """Samples the memory of this process in the background, from entering to leaving the block.

    Parameters
    ----------
    interval : float
        Seconds between samples.

    Attributes
    ----------
    peak_anon, peak_rss : int
        The largest seen so far, in bytes.
    start : Memory
        On entering.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.interval = interval
        self.peak_anon = 0
        self.peak_rss = 0
        self.start = Memory(0, 0, 0)
        self._series = _new_series()
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> Memory:
        """Take one sample now, for a moment that matters."""
        now = current_memory()
        self.peak_anon = max(self.peak_anon, now.anon)
        self.peak_rss = max(self.peak_rss, now.rss)
        with self._lock:
            self._series.add((time.perf_counter() - self._began, now.anon))
        return now

    @property
    def series(self) -> list[tuple[float, int]]:
        """Seconds since entering and anonymous bytes, in order: at most 512 samples, the peak among them."""
        return self._series.samples

    def __enter__(self) -> PeakMemory:
        self._series = _new_series()
        self._began = time.perf_counter()
        self.start = self.sample()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="llmq-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.sample()
        self._series.finish()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            with contextlib.suppress(MemoryError, RuntimeError):  # no memory to look with: whoever needs it will tell
                self.sample()


def _new_series() -> Series[tuple[float, int]]:
    return Series(_KEPT, height=lambda sample: sample[1])


def total_memory(root: Path = Path("/")) -> int:
    """Memory this process may use: the machine's, or the least limit of its cgroups."""
    limits = [limit for limit, _ in _cgroups(root)]
    return min([_meminfo(root).get("MemTotal") or _physical_memory(), *limits])


def available_memory(root: Path = Path("/")) -> int:
    """Memory still free for this process, page cache that can be dropped included."""
    meminfo = _meminfo(root)
    machine = meminfo.get("MemAvailable") or meminfo.get("MemFree") or _physical_memory()
    return max(0, min([machine, *(limit - used for limit, used in _cgroups(root))]))


def process_limit() -> int:
    """Bytes that this process may come to take without crowding the machine: its own and most of what is free."""
    return current_memory().anon + max(0, available_memory() - min(_SPARE, total_memory() // 16))


def lock_memory(address: int, count: int) -> None:
    """Keep `count` bytes from an address on in memory, reading them first where they are mapped files.

    Raises
    ------
    OSError
        The system does not allow so much, or cannot do it.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).mlock
    except (AttributeError, TypeError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if call(ctypes.c_void_p(address), ctypes.c_size_t(count)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize  # unknown: no limit that could be kept


def _meminfo(root: Path) -> dict[str, int]:
    lines = _lines(root / "proc/meminfo")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key: 1024 * int(value.split()[0]) for key, value in pairs if value.split()[:1]}


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """`(limit, used)` of every limited cgroup this process is in, the files that can be dropped not counted as used."""
    found = []
    for base, path, limit_name, used_name in _controllers(root, "self"):
        for folder in (path, *path.parents):
            limit = _number(folder / limit_name)
            if limit is not None:
                found.append((limit, max(0, (_number(folder / used_name) or 0) - _droppable(folder))))
            if folder == base:
                break
    return found


def cgroup_memory(pid: int | str) -> int | None:
    """Bytes that the cgroup of a process counts now, its page cache included; None where the system does not tell."""
    for base, path, _, used_name in _controllers(Path("/"), pid):
        for folder in (path, base):
            found = _number(folder / used_name)
            if found is not None:
                return found
    return None


def _controllers(root: Path, pid: int | str) -> Iterator[tuple[Path, Path, str, str]]:
    """Root and folder of every cgroup of memory that a process is in, and what its limit and its use are called."""
    for line in _lines(root / "proc" / str(pid) / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = root / "sys/fs/cgroup"
        if controllers == "":
            yield base, base / path.lstrip("/"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base /= "memory"
            yield base, base / path.lstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes"


def _droppable(folder: Path) -> int:
    """Bytes of files that a cgroup, and those inside it, hold in memory and the system can drop."""
    pairs = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    lists = ("inactive_file", "active_file")
    return sum(int(pairs.get(f"total_{name}", pairs.get(name, 0))) for name in lists)


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
