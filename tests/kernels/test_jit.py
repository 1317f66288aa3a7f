import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import llmq_kernels
from llmq_kernels import jit
from llmq_kernels.layout import PackedMatrix
from llmq_kernels.quantize import dequantize

SOURCES = Path(llmq_kernels.__file__).parent

WORK = """
import numpy as np
from llmq_kernels import jit
compiled = []
jit.on_compile(compiled.append)
from llmq_kernels.pack import pack, unpack
codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
assert (unpack(pack(codes, 4), 4, 8) == codes).all()
import numba
assert not numba.config.CACHE_DIR or numba.config.CACHE_DIR == __import__("os").environ.get("NUMBA_CACHE_DIR")
print(jit.cache_folder(), *compiled)
"""


def run(code, sources=SOURCES.parent, **changes):
    """Run Python in a fresh process with a clean set of cache variables; return what it printed."""
    dropped = ("LLMQ_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_BOUNDSCHECK", "NUMBA_CPU_NAME")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"} | changes
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def copied_sources(tmp_path):
    """A copy of the kernels that a test may edit."""
    shutil.copytree(SOURCES, tmp_path / "kernels" / "llmq_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "kernels"


def test_kernels_are_compiled_once(tmp_path):
    folder, *compiled = run(WORK, LLMQ_CACHE_DIR=str(tmp_path))
    assert Path(folder).parent == tmp_path / "llmq"
    assert compiled == ["pack._pack", "pack._unpack"]
    assert run(WORK, LLMQ_CACHE_DIR=str(tmp_path)) == [folder]
    # Truncated files are no more than a miss.
    for file in Path(folder).rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:40])
    assert run(WORK, LLMQ_CACHE_DIR=str(tmp_path)) == [folder, *compiled]


def test_a_changed_source_has_another_folder(tmp_path, copied_sources):
    script = "from llmq_kernels import jit; print(jit.cache_folder())"
    before = run(script, copied_sources, LLMQ_CACHE_DIR=str(tmp_path))
    assert run(script, copied_sources, LLMQ_CACHE_DIR=str(tmp_path)) == before
    with (copied_sources / "llmq_kernels" / "floats.py").open("a") as file:
        file.write("\n# changed\n")
    assert run(script, copied_sources, LLMQ_CACHE_DIR=str(tmp_path)) != before
    assert run(script, LLMQ_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="generic") != before
    assert run(script, LLMQ_CACHE_DIR=str(tmp_path), NUMBA_BOUNDSCHECK="1") != before


def test_where_the_folder_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("LLMQ_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit._cache_bases() == [tmp_path / ".cache" / "llmq"]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert jit._cache_bases() == [tmp_path / ".cache" / "llmq"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("LLMQ_CACHE_DIR", str(tmp_path / "llmq"))
    assert [base.parent.name for base in jit._cache_bases()] == ["llmq", "numba", "xdg"]
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert jit._cache_bases()[-1] == tmp_path / "local" / "llmq" / "cache"


def test_nowhere_to_write_is_no_error(tmp_path, copied_sources):
    file = tmp_path / "file"
    file.touch()
    for path in (copied_sources / "llmq_kernels", copied_sources):
        path.chmod(0o555)
    # A folder below a file cannot be made, not even by root.
    nowhere = {"LLMQ_CACHE_DIR": f"{file}/a", "XDG_CACHE_HOME": f"{file}/b", "HOME": None}
    try:
        assert run(WORK, copied_sources, **nowhere) == ["None", "pack._pack", "pack._unpack"]
    finally:
        for path in (copied_sources, copied_sources / "llmq_kernels"):
            path.chmod(0o755)
    assert not list(copied_sources.rglob("__pycache__"))


def test_packing_needs_no_compiler():
    assert run(WORK, NUMBA_DISABLE_JIT="1")[1:] == []


def test_other_libraries_keep_their_cache():
    assert os.environ.get("NUMBA_CACHE_DIR", "") == numba.config.CACHE_DIR


def test_the_number_of_threads():
    before = jit.threads()
    try:
        jit.set_threads(1)
        dequantize(PackedMatrix(np.zeros((2, 4), np.uint8), np.zeros((2, 2), np.uint16), None, 4, 4, 8, 0))
        assert jit.threads() == numba.get_num_threads() == 1
    finally:
        jit.set_threads(before)
    for wrong in (0, -1, 10_000):
        with pytest.raises(ValueError, match="NUMBA_NUM_THREADS"):
            jit.set_threads(wrong)


def test_a_small_call_runs_on_one_thread_and_leaves_no_trace():
    seen = []
    jit._apply_threads()
    before = numba.get_num_threads()

    def kernel(fail):
        seen.append(numba.get_num_threads())
        if fail:
            raise KeyError

    jit.call(kernel, False, parallel=True)
    jit.call(kernel, False, parallel=False)
    with pytest.raises(KeyError):
        jit.call(kernel, True, parallel=False)
    assert seen == [before, 1, 1]
    assert numba.get_num_threads() == before


CONCURRENT = """
import threading
import numpy as np
from llmq_kernels.layout import PackedMatrix
from llmq_kernels.quantize import dequantize
matrix = PackedMatrix(np.zeros((512, 128), np.uint8), np.zeros((512, 8), np.uint16), None, 4, 32, 256, 0)
def work():
    for _ in range(50):
        dequantize(matrix)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
import numba
print(numba.threading_layer())
"""


def test_python_threads_may_share_the_workqueue():
    # Without the lock the process aborts.
    environment = {name: os.environ.get(name) for name in ("LLMQ_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    assert run(CONCURRENT, NUMBA_THREADING_LAYER="workqueue", **environment) == ["workqueue"]


CHOICES = """
import hashlib
import numpy as np
from llmq_kernels.layout import Grid
from llmq_kernels.quantize import quantize
from llmq_kernels.search import search_scales
weight = np.random.default_rng(0).standard_t(4, (64, 256)).astype(np.float32)
digest = hashlib.sha256()
for bits in (1, 2, 3, 4, 8):
    for symmetric in (True, False):
        grid = Grid(bits, 64, symmetric=symmetric)
        digest.update(quantize(weight, grid, *search_scales(weight, grid)).packed.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names CPUs of one kind")
def test_the_width_of_vectors_changes_no_byte(tmp_path):
    here = run(CHOICES, LLMQ_CACHE_DIR=str(tmp_path))
    assert run(CHOICES, LLMQ_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="x86-64-v2") == here


def test_notices_end():
    seen = []
    end = jit.on_compile(seen.append)

    def kernel(x):
        return x + 1

    kernel.__module__ = "llmq_kernels.made_up"
    numba.njit(kernel)(1)
    end()
    numba.njit(kernel)(1.0)
    assert seen == ["made_up.kernel"]
