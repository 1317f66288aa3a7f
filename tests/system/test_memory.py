import gc
import mmap
import os
import sys
import time

import numpy as np
import pytest

from llmq.system import memory
from llmq.system.memory import PeakMemory, available_memory, current_memory, total_memory

needs_proc = pytest.mark.skipif(not (memory._PROCESSES / "self/status").exists(), reason="needs /proc")


@needs_proc
def test_current_memory():
    now = current_memory()
    assert 0 < now.anon < now.rss
    assert 0 < now.file < now.rss


@needs_proc
def test_peak_is_seen_in_between():
    gc.collect()  # what other tests left would be given back meanwhile
    with PeakMemory(interval=0.002) as peak:
        block = np.ones(64 << 20, np.uint8)
        deadline = time.monotonic() + 30.0
        while peak.peak_anon - peak.start.anon <= 60 << 20 and time.monotonic() < deadline:
            time.sleep(0.002)
        del block
    assert peak.peak_anon - peak.start.anon > 60 << 20
    assert peak.peak_rss >= peak.peak_anon
    assert current_memory().anon < peak.peak_anon - (30 << 20)


def test_the_series_is_bounded_and_keeps_the_peak(monkeypatch):
    values = [100 + (7919 * i) % 1000 for i in range(5000)]
    readings = iter(values)
    monkeypatch.setattr(memory, "current_memory", lambda: memory.Memory(next(readings), 0, 0))
    peak = PeakMemory(interval=1000.0)
    with peak:
        for _ in range(len(values) - 2):
            peak.sample()
    assert 128 < len(peak.series) <= 512
    assert max(anon for _, anon in peak.series) == max(values) == peak.peak_anon
    seconds = [second for second, _ in peak.series]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0.0


def test_few_samples_are_all_kept(monkeypatch):
    readings = iter([5, 9, 3])
    monkeypatch.setattr(memory, "current_memory", lambda: memory.Memory(next(readings), 0, 0))
    with PeakMemory(interval=1000.0) as peak:
        peak.sample()
    assert [anon for _, anon in peak.series] == [5, 9, 3]


@needs_proc
def test_a_mapped_file_is_not_anonymous(tmp_path):
    (tmp_path / "f").write_bytes(bytes(32 << 20))
    with PeakMemory() as peak, (tmp_path / "f").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        np.frombuffer(mapped, np.uint8).sum()
        after = peak.sample()
    assert after.file - peak.start.file > 30 << 20
    assert peak.peak_anon - peak.start.anon < 8 << 20


def test_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROCESSES", tmp_path / "absent")
    assert current_memory().anon == current_memory().rss > 1 << 20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert current_memory() == memory.Memory(0, 0, 0)


def test_this_machine():
    assert 0 < available_memory() <= total_memory()


def machine(root, cgroup: str, files: dict[str, str]):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        "MemTotal:       8000 kB\nMemFree:   100 kB\nMemAvailable:    6000 kB\nHugePages_Total: 0\n"
    )
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_limit(tmp_path):
    root = machine(tmp_path, "0::/\n", {"a/memory.max": "max\n"})
    assert total_memory(root) == 8000 << 10
    assert available_memory(root) == 6000 << 10


def test_cgroup_2(tmp_path):
    files = {
        "a/memory.max": "3000000\n", "a/memory.current": "2500000\n", "a/memory.stat": "anon 1\ninactive_file 500000\n",
        "a/b/memory.max": "max\n", "memory.max": "9000000\n", "memory.current": "1\n",
    }  # fmt: skip
    root = machine(tmp_path, "0::/a/b\n", files)
    assert total_memory(root) == 3000000
    assert available_memory(root) == 1000000


def test_cgroup_1(tmp_path):
    files = {"memory/j/memory.limit_in_bytes": "2000000\n", "memory/j/memory.usage_in_bytes": "2100000\n"}
    root = machine(tmp_path, "3:cpu,cpuacct:/j\n2:memory:/j\n", files)
    assert total_memory(root) == 2000000
    assert available_memory(root) == 0


def test_unknown_machine(tmp_path, monkeypatch):
    assert total_memory(tmp_path) > 1 << 20
    monkeypatch.delattr(os, "sysconf")
    assert total_memory(tmp_path) == sys.maxsize
