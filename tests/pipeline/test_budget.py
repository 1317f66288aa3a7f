"""Runs within a real limit of the system, and the same bytes whatever the limit."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmq
from llmq.errors import ResourceError
from llmq.pipeline import facade

MEBIBYTE = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def wide(tmp_path_factory, write_pico):
    """A checkpoint of which one table is larger than most of the limits: 307 MB."""
    return write_pico(tmp_path_factory.mktemp("wide") / "in", hidden_size=512, vocab_size=150_000, num_hidden_layers=1)


def quantize(source, output, *flags, **options):
    command = [sys.executable, "-m", "llmq", "-q", "quantize", source, "-o", output, "--embeddings", "4", "--json"]
    threads = {"NUMBA_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *flags],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


@pytest.fixture
def cgroup():
    """A cgroup of memory, new and empty: a function that sets its limit, and its folder."""
    old = (CGROUPS / "memory").is_dir()
    parent, name = (CGROUPS / "memory", "memory.limit_in_bytes") if old else (CGROUPS, "memory.max")
    folder = parent / f"llmq-test-{os.getpid()}"
    try:
        if not old and "memory" not in (CGROUPS / "cgroup.subtree_control").read_text().split():
            pytest.skip("memory is not delegated to cgroups below the root")
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    yield folder, lambda limit: (folder / name).write_text(str(limit))
    folder.rmdir()


def test_within_a_cgroup_of_the_same_size(tmp_path, wide, cgroup):
    folder, set_limit = cgroup
    set_limit(256 * MEBIBYTE)
    process = {"preexec_fn": lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))}
    done = quantize(wide, tmp_path / "out", "--max-memory", "256MiB", **process)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["source_bytes"] > 256 * MEBIBYTE
    assert report["peak_anon_bytes"] <= report["max_memory_bytes"] == 256 * MEBIBYTE
    # Without a flag the limit of the cgroup is found, and kept to.
    again = quantize(wide, tmp_path / "out", "--overwrite", **process)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["max_memory_bytes"] == 256 * MEBIBYTE


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
def test_within_a_limit_of_the_process(tmp_path, wide):
    import resource

    # It counts what is reserved, stacks of threads above all, and not what is used.
    limit = 560 * MEBIBYTE
    process = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))}
    done = quantize(wide, tmp_path / "out", "--max-memory", "256MiB", **process)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_anon_bytes"] <= 256 * MEBIBYTE


@pytest.mark.parametrize("symmetric", [True, False])
def test_limits_change_no_byte(tmp_path, wide, symmetric):
    found = [
        digests(llmq.quantize(wide, tmp_path / str(limit), embeddings=4, symmetric=symmetric, max_memory=limit).output)
        for limit in (256 * MEBIBYTE, 1 << 30, 8 << 30)
    ]
    assert found[0] == found[1] == found[2]
    blocks = [
        llmq.quantize(wide, tmp_path / "x", dry_run=True, max_memory=limit).plan for limit in (256 << 20, 8 << 30)
    ]
    rows = [max(tensor.rows_per_block for tensor in plan.quantized) for plan in blocks]
    assert rows[0] <= rows[1]


def test_the_machine_sets_the_limit_where_nobody_does(tmp_path, wide, monkeypatch):
    monkeypatch.setattr(facade, "process_limit", lambda: 300 * MEBIBYTE)
    assert llmq.quantize(wide, tmp_path / "x", dry_run=True).max_memory == 300 * MEBIBYTE
    monkeypatch.setattr(facade, "process_limit", lambda: 10 * MEBIBYTE)
    assert llmq.quantize(wide, tmp_path / "x", dry_run=True).max_memory == 256 * MEBIBYTE, (
        "no run is refused for so little"
    )
    monkeypatch.setattr(facade, "_LEAST_BYTES", 0)
    assert llmq.quantize(wide, tmp_path / "x", dry_run=True).plan.predicted_peak_bytes > 10 * MEBIBYTE
    with pytest.raises(ResourceError, match="memory limit too small"):
        llmq.quantize(wide, tmp_path / "x", dry_run=True, max_memory=100 * MEBIBYTE)
