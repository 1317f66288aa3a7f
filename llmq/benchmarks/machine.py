"""What this machine does a second, measured in about a second: enough to tell minutes from hours beforehand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

from llmq.checkpoint.faults import writing
from llmq.methods import METHODS
from llmq.system.direct import PIECE, REQUESTS, DirectFile, aligned_buffer
from llmq.system.files import sync_data
from llmq.system.pool import DaemonPool
from llmq_kernels.bandwidth import checksum

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmq.checkpoint.source import Source
    from llmq.spec import QuantSpec

__all__ = ["disk_rate", "memory_rate", "quantize_rate", "source_rates", "stream_rate"]

_ROWS: Final = 512
_COLUMNS: Final = 4096
_MEMORY: Final = 256 << 20
_DISK: Final = 64 << 20
_NEAR: Final = 64 << 20
_FAR: Final = 16 << 20
_RUNS: Final = 3


def _best(work: Callable[[], object], runs: int = _RUNS) -> float:
    """Seconds of the quickest run, after one that warms up."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(min(times[1:]), 1e-9)


def quantize_rate(method: str, spec: QuantSpec) -> float:
    """Weights a second that a method without data quantizes by `spec`; its kernels are compiled first."""
    columns = max(_COLUMNS // spec.group_size, 1) * spec.group_size if spec.group_size > 0 else _COLUMNS
    draw = np.random.default_rng(0)
    weight = (0.02 * draw.standard_normal((_ROWS, columns))).astype(ml_dtypes.bfloat16)
    resolved = spec.resolve(columns, "bfloat16")
    return weight.size / _best(lambda: METHODS[method].quantize(weight, resolved))


def memory_rate() -> float:
    """Bytes a second that all threads read from memory."""
    data = np.ones(_MEMORY, np.uint8)
    return data.size / _best(lambda: checksum(data))


def disk_rate(folder: Path) -> float:
    """Bytes a second that reach the disk of a folder, checksums of tensor and file included.

    Raises
    ------
    ResourceError, UsageError
        Nothing can be written there.
    """
    data = np.random.default_rng(0).integers(0, 256, _DISK, np.uint8).data
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(data)
        file.flush()
        hashlib.sha256(data).digest()
        sync_data(file.fileno())
        return len(data) / (time.perf_counter() - began)


def stream_rate(folder: Path) -> float:
    """Bytes a second that come from the disk of a folder past its cache, as blocks that do not stay in memory do.

    Raises
    ------
    ResourceError, UsageError
        Nothing can be written there.
    """
    data = np.random.default_rng(1).integers(0, 256, _DISK, np.uint8).data
    pool = DaemonPool(REQUESTS, "llmq-rate")
    buffers = [aligned_buffer(PIECE).data for _ in range(REQUESTS)]
    with contextlib.closing(pool), writing(folder), tempfile.TemporaryFile(dir=folder) as written:
        written.write(data)
        written.flush()
        sync_data(written.fileno())
        with contextlib.closing(DirectFile(os.dup(written.fileno()))) as file:
            began = time.perf_counter()
            # Requests that share a buffer may overlap: nobody looks at what they bring.
            starts = range(0, _DISK, PIECE)
            reads = [pool.submit(file.read, buffers[i % REQUESTS], at, PIECE) for i, at in enumerate(starts)]
            wait(reads)
            seconds = time.perf_counter() - began
            for read in reads:
                read.result()
    return _DISK / max(seconds, 1e-9)


def source_rates(source: Source) -> tuple[float, float]:
    """Bytes a second that come from a source, and seconds of a processor that each byte takes of ours.

    Some of its largest tensor is read once: from a disk, or its cache, or afar.

    Raises
    ------
    LlmqError
        It cannot be read.
    """
    largest = max(source.tensors.values(), key=lambda info: info.nbytes)
    count = min(largest.nbytes, _FAR if source.in_file_order else _NEAR)
    buffer = memoryview(bytearray(count))
    began, busy = time.perf_counter(), time.process_time()
    source.read_into(largest, 0, buffer)
    seconds, spent = time.perf_counter() - began, time.process_time() - busy
    return count / max(seconds, 1e-9), spent / count
