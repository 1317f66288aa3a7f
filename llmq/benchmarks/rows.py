"""What a benchmark reports: rows of figures, and the machine that they were taken on."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numba

import llmq
from llmq_kernels.simd import host_cpu, host_features

__all__ = ["Row", "Table", "cpu_features", "describe_machine"]

_FEATURES: Final = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi", "avxvnni"),
    *("neon", "dotprod", "i8mm"),
)
_PACKAGES: Final = ("numba", "llvmlite", "numpy")

_config: Any = numba.config


def cpu_features() -> list[str]:
    """Features of the processor that kernels are compiled for, as far as they matter here."""
    enabled = host_features()
    return [name for name in _FEATURES if name in enabled]


def describe_machine() -> dict[str, Any]:
    """Processor, the features of it that kernels are compiled for, and versions."""
    return {
        "cpu": _model_name() or platform.processor() or platform.machine(),
        "compiled_for": host_cpu(),
        "features": cpu_features(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"llmq": llmq.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
    }


def _model_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(values, None)


@dataclass(frozen=True)
class Row:
    """One measurement: the median of several runs. None where a figure has no meaning, or cannot be had.

    Parameters
    ----------
    name : str
    threads : int
    bits, group_size : int or None
        Of the weights, where they have one width.
    tokens : int or None
        Tokens that went through at once.
    seconds : float
        For all of them; of a matmul, of one matrix.
    bytes_per_second : float or None
        Bytes of weights that were read, over the seconds.
    limit_bytes_per_second : float or None
        What a kernel that only loads reads, measured in turn with it.
    tokens_per_second : float or None
    operations_per_second : float or None
        Multiplications and additions.
    joules_per_token : float or None
        Of the processor's package, where the kernel tells.
    peak_anon_bytes, peak_rss_bytes : int or None
        Memory of the process.
    predicted_peak_bytes : int or None
        What was said beforehand: of anonymous memory of quantizing, of resident memory of running.
    peak_pss_bytes, cgroup_peak_bytes : int or None
        Of the whole process: its share of what it maps counted, and what its cgroup counts, page cache included.
    """

    name: str
    threads: int
    seconds: float
    bits: int | None = None
    group_size: int | None = None
    tokens: int | None = None
    bytes_per_second: float | None = None
    limit_bytes_per_second: float | None = None
    tokens_per_second: float | None = None
    operations_per_second: float | None = None
    joules_per_token: float | None = None
    peak_anon_bytes: int | None = None
    peak_rss_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    peak_pss_bytes: int | None = None
    cgroup_peak_bytes: int | None = None

    @property
    def ratio(self) -> float | None:
        """Bytes per second over the limit."""
        if self.bytes_per_second is None or not self.limit_bytes_per_second:
            return None
        return self.bytes_per_second / self.limit_bytes_per_second

    def to_json(self) -> dict[str, Any]:
        """All figures and the ratio."""
        return asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Table:
    """The rows of a benchmark.

    Parameters
    ----------
    benchmark : str
        Its name on the command line.
    settings : dict
        What was asked.
    rows : list of Row
    machine : dict
        See `describe_machine`.
    """

    benchmark: str
    settings: dict[str, Any]
    rows: list[Row]
    machine: dict[str, Any] = field(default_factory=describe_machine)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints, without its schema number."""
        return asdict(self) | {"rows": [row.to_json() for row in self.rows]}
