"""How many processors a cgroup grants this process; the affinity mask is counted by Numba already."""

from __future__ import annotations

import math
from pathlib import Path

from llmq_kernels.jit import set_threads, threads, threads_chosen

__all__ = ["cpu_quota", "keep_to_quota"]


def keep_to_quota() -> None:
    """Give the kernels no more threads than cgroups grant, unless somebody has said how many."""
    quota = None if threads_chosen() else cpu_quota()
    if quota is not None and quota < threads():
        set_threads(quota)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Processors by the least quota of this process's cgroups, rounded up; None where there is none.

    Reads `cpu.max` of cgroups of version 2, and `cpu.cfs_quota_us` over `cpu.cfs_period_us` of version 1.
    """
    found = [quota for folder in _folders(root) if (quota := _quota(folder)) is not None]
    return max(1, math.ceil(min(found))) if found else None


def _folders(root: Path) -> list[Path]:
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inner = base / path.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder == base or base in folder.parents]
    return folders


def _quota(folder: Path) -> float | None:
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None  # "max", or -1
    return int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
