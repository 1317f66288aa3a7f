"""Threads, forks and surroundings that are not as usual: right results, or one clear error; never a hang or a crash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmq_kernels

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(llmq_kernels.__file__).parents[2]
LAYERS = ["omp", "workqueue", pytest.param("tbb", marks=pytest.mark.slow)]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has neither forks nor these limits")


def has_tbb():
    """Whether Numba could use TBB, which pip installs where the dynamic linker does not look."""
    try:
        from numba.np.ufunc import tbbpool
    except ImportError:
        return False
    return bool(tbbpool)


def start(*arguments, timeout=250, python=(), **changes):
    """Run Python in a process of its own with changed variables; None removes one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])} | changes
    environment = {name: value for name, value in environment.items() if value is not None}
    command = [sys.executable, *python, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )


def llmq_command(*arguments, **changes):
    return start("-m", "llmq", *arguments, **changes)


@pytest.fixture(scope="module")
def small(tmp_path_factory, write_pico):
    """A quantized model of nine blocks."""
    import llmq

    root = tmp_path_factory.mktemp("safety")
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 9, "vocab_size": 300}
    write_pico(root / "in", shards=3, num_attention_heads=8, head_dim=32, max_position_embeddings=900, **sizes)
    return llmq.quantize(root / "in", root / "out").output


@pytest.mark.parametrize("layer", LAYERS)
def test_python_threads_share_everything(small, layer):
    if layer == "tbb" and not has_tbb():
        pytest.skip("no TBB")
    done = start(PROGRAMS / "many_threads.py", small, 12, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [layer, str(8 * 2 * (20 + 20 + 1 + 1 + 4 + 8))]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["omp", "workqueue", "tbb"])
def test_python_threads_share_everything_for_long(small, layer):
    if layer == "tbb" and not has_tbb():
        pytest.skip("no TBB")
    done = start(PROGRAMS / "many_threads.py", small, 600, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("how", "streamed", "processes"),
    [
        ("os", 0, 3),
        ("os", 5, 3),
        ("busy", 5, 6),
        ("pool", 0, 5),
        pytest.param("pool", 5, 5, marks=pytest.mark.slow),
        pytest.param("busy", 0, 6, marks=pytest.mark.slow),
        pytest.param("fork", 0, 2, marks=pytest.mark.slow),
        pytest.param("spawn", 0, 2, marks=pytest.mark.slow),
        pytest.param("forkserver", 5, 2, marks=pytest.mark.slow),
    ],
)
def test_processes_started_after_the_model_ran_are_right(small, layer, how, streamed, processes):
    if layer == "tbb" and not has_tbb():
        pytest.skip("no TBB")
    program = PROGRAMS / "forked_model.py"
    done = start(program, small, how, streamed, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line and "Unable to join" not in line]  # TBB's words
    assert told == ["right"] * processes


@pytest.mark.parametrize("count", ["0", "-3", "x", "1.5", "100000"])
def test_numbers_of_threads_that_make_no_sense(small, tmp_path, count):
    for arguments, changes in (
        (("generate", small, "-p", "a", "--threads", count), {}),
        (("compare", small, small), {"NUMBA_NUM_THREADS": count}),
        (("doctor",), {"NUMBA_NUM_THREADS": count}),
    ):
        done = llmq_command(*arguments, **changes)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) <= 2


def digest_of(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize(
    "changes", [{"NUMBA_NUM_THREADS": "1"}, {"NUMBA_NUM_THREADS": "64"}, {"NUMBA_NUM_THREADS": ""}]
)
def test_numbers_of_threads_change_no_byte(small, tmp_path, changes):
    source = small.parent / "in"
    done = llmq_command("quantize", source, "-o", tmp_path / "out", **changes)
    assert done.returncode == 0, done.stderr
    assert digest_of(tmp_path / "out") == digest_of(small)


def test_more_threads_than_cores_change_no_byte(small, tmp_path):
    source = small.parent / "in"
    done = llmq_command("quantize", source, "-o", tmp_path / "out", "--threads", "17")
    assert done.returncode == 0, done.stderr
    assert digest_of(tmp_path / "out") == digest_of(small)


def test_no_home_and_nowhere_to_write_is_told_once(small, tmp_path):
    file = tmp_path / "file"
    file.touch()
    # A folder below a file cannot be made, not even by root.
    nowhere = {"LLMQ_CACHE_DIR": f"{file}/a", "NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": f"{file}/b", "HOME": None}
    done = llmq_command("quantize", small.parent / "in", "-o", tmp_path / "out", "--method", "rtn", **nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("LLMQ_CACHE_DIR") == 1
    assert "Traceback" not in done.stderr


CLOSED = """
import os, sys
for number in {closed}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-m", "llmq", *sys.argv[1:]])
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_harm_no_file(small, tmp_path, closed):
    done = start("-c", CLOSED.format(closed=closed), "quantize", small.parent / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert digest_of(tmp_path / "out") == digest_of(small)


def test_a_bare_environment(small, tmp_path):
    bare = {
        "LANG": "C",
        "LC_ALL": "C",
        "TERM": None,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": None,
    }
    output = tmp_path / "\u20ac"
    done = llmq_command("quantize", small.parent / "in", "-o", output, **bare)
    assert done.returncode == 0, done.stderr
    assert digest_of(output) == digest_of(small)


def test_arguments_that_are_no_utf_8(small, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    shutil.copytree(small.parent / "in", odd)
    assert llmq_command("quantize", odd, "-o", odd + "out").returncode == 0
    assert digest_of(Path(odd + "out")) == digest_of(small)
    done = llmq_command("quantize", odd + "missing", "-o", tmp_path / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 2)
    assert "\\udcff" in done.stderr


def test_a_file_that_is_cut_after_it_was_mapped_is_seen_by_the_next_load(small, tmp_path):
    import llmq
    from llmq.errors import InputError

    folder = shutil.copytree(small, tmp_path / "cut")
    model = llmq.load(folder)
    file = next(folder.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 4096)
    with pytest.raises(InputError):
        llmq.load(folder)
    del model
