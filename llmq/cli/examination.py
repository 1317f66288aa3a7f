"""What `llmq doctor` finds out."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numba

import llmq
from llmq.benchmarks.rows import cpu_features
from llmq.system.files import free_bytes
from llmq.system.memory import available_memory, total_memory
from llmq_kernels.jit import cache_folder, threads
from llmq_kernels.simd import host_cpu, target

__all__ = ["examine", "warm_up"]

_PACKAGES: Final = (
    "numba",
    "llvmlite",
    "numpy",
    "ml_dtypes",
    "safetensors",
    "transformers",
    "huggingface-hub",
    "click",
    "rich",
    "torch",
    "compressed-tensors",
)
_VARIABLES: Final = (
    "LLMQ_CACHE_DIR",
    "NUMBA_NUM_THREADS",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "NUMBA_CACHE_DIR",
    "NUMBA_DISABLE_JIT",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
_LITTLE: Final = 1_000_000_000

_numba: Any = numba


def examine() -> dict[str, Any]:
    """Return the object that `llmq doctor --json` prints, without its schema number."""
    layer = _threading_layer()
    folder = cache_folder()
    disk = {"here": free_bytes(Path()), "temporary": free_bytes(Path(tempfile.gettempdir()))}
    if folder is not None:
        disk["kernel cache"] = free_bytes(folder)
    return {
        "versions": _versions(),
        "cpu": _cpu(),
        "threads": {"cpus": os.cpu_count(), "allowed": _allowed_cpus(), "kernels": threads(), "layer": layer},
        "cache": None if folder is None else str(folder),
        "memory": {"total": total_memory(), "available": available_memory()},
        "disk": disk,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "problems": _problems(layer, disk),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"llmq": llmq.__version__, "python": platform.python_version()}
    found["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return found | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """Return what Numba compiles for, which the environment can change."""
    return {
        "name": host_cpu(),
        "features": cpu_features(),
        "vectors": target().name,
    }


def _allowed_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _threading_layer() -> str | None:
    try:
        _numba.get_num_threads()  # starts the threads, after which the layer is known
        return str(_numba.threading_layer())
    except ValueError:
        return None


def _problems(layer: str | None, disk: dict[str, int]) -> list[str]:
    found = [*_name_clashes(), *_thread_problems(layer)]
    if cache_folder() is None:
        found.append("compiled kernels cannot be kept: set LLMQ_CACHE_DIR to a folder that can be written")
    found += [f"little disk left: {name}" for name, free in disk.items() if free < _LITTLE]
    if available_memory() < _LITTLE:
        found.append("less than 1 GB of memory is available")
    return found


def _name_clashes() -> list[str]:
    found = []
    owners = set(metadata.packages_distributions().get("llmq", [])) - {"numba-llmq"}
    if owners:
        found.append(f"another distribution installs a package called llmq: {', '.join(sorted(owners))}")
    spec = importlib.util.find_spec("kernels")
    if _version("kernels") is not None and spec is not None and spec.origin is None:
        found.append(
            f"a folder hides the package `kernels` of Hugging Face: {list(spec.submodule_search_locations or ())}"
        )
    return found


def _thread_problems(layer: str | None) -> list[str]:
    found = []
    if layer == "workqueue":
        found.append("no OpenMP or TBB library: kernels of several Python threads run one after the other")
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.lower() != "passive":
        found.append(f"OMP_WAIT_POLICY is {policy!r}: waiting threads spin, which is slow on a busy machine")
    elif "torch" in sys.modules:
        found.append("torch was imported before llmq: its OpenMP threads spin unless OMP_WAIT_POLICY=passive was set")
    if _numba.config.DISABLE_JIT:
        found.append("NUMBA_DISABLE_JIT is set: kernels that are emitted cannot run")
    return found


def warm_up() -> float:
    """Quantize the sample model and run it, so that its kernels are compiled; return the seconds it took."""
    from llmq.pipeline import quantize
    from llmq.runtime import load
    from llmq.runtime.sampling import Sampling
    from llmq.sample import write_sample

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmq-") as folder:
        source = write_sample(Path(folder) / "sample")
        runs: tuple[dict[str, Any], ...] = ({"embeddings": 8}, {"symmetric": False}, {"method": "rtn"})
        outputs = [quantize(source, Path(folder) / str(n), **run).output for n, run in enumerate(runs)]
        for path in (source, *outputs[:2]):
            for compute in ("int8", "float32"):
                model = load(path, compute=compute)
                for rules in (Sampling(), Sampling(temp=1.0)):
                    list(model.generate(range(32), max_tokens=4, sampling=rules, stop_tokens=()))
        for bits in (8, 4):
            list(load(outputs[0], kv_bits=bits).generate(range(32), max_tokens=4, stop_tokens=()))
    return time.perf_counter() - began
