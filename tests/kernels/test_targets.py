"""Products on every instruction set: run where the machine has it, and else as far as it can be."""

import platform
import re
import shutil

import llvmlite.binding as llvm
import pytest

from llmq_kernels.simd import target_for
from llmq_kernels.tiles import tile_shape

pytestmark = pytest.mark.emitted

ALL_WIDTHS = range(1, 9)
X86 = platform.machine() in ("x86_64", "AMD64")

# Which features to take away, so that an instruction set is the best that is left.
MASKS = {
    "avx512vnni": ("avx512vbmi",),
    "avxvnni": ("avx512",),
    "avx2": ("avx512", "avxvnni", "avx10"),
    "portable": ("avx", "f16c", "fma", "xop"),
}


def masked(name):
    """This CPU's features without some, as Numba and LLVM take them."""
    has = llvm.get_host_cpu_features().items()
    return {key: yes and not key.startswith(MASKS[name]) for key, yes in has}


def here():
    """Instruction sets that can be had from this CPU by masking."""
    return [name for name in MASKS if X86 and target_for(present(masked(name))).name == name]


def present(features):
    return frozenset(key for key, yes in features.items() if yes)


def run_masked(run_program, name, widths):
    return run_features(run_program, name, widths, masked(name), None)


def run_features(run_program, name, widths, present, cpu):
    features = ",".join(f"{'+' if yes else '-'}{key}" for key, yes in sorted(present.items()))
    done = run_program("any_target", *widths, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    assert done.returncode == 0, done.stderr[-3000:]
    used, _, *shape, count = done.stdout.split()
    assert used == name
    assert int(count) > 30 * len(widths)
    return tuple(map(int, shape))


@pytest.mark.parametrize("name", here())
def test_with_some_features_masked(run_program, name):
    run_masked(run_program, name, (3,))


@pytest.mark.skipif("avx512vnni" not in here(), reason="has no AVX-512 VNNI")
@pytest.mark.parametrize(("cpu", "shape"), [("znver4", (1, 8)), ("icelake-server", (2, 6))])
def test_processors_with_whole_and_half_units(run_program, cpu, shape):
    features = llvm.get_host_cpu_features()
    assert tile_shape(target_for(present(features), cpu)) == shape
    if llvm.get_host_cpu_name() != cpu:  # the host's are run by other tests
        assert run_features(run_program, "avx512vnni", (8,), features, cpu) == shape


@pytest.mark.slow
@pytest.mark.parametrize("name", here())
def test_all_widths_with_some_features_masked(run_program, name):
    run_masked(run_program, name, ALL_WIDTHS)


def run_stand_in(run_program, folder, name, width, widths):
    done = run_program("any_target", "--stand-in", name, width, *widths, LLMQ_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[:2] == [name, str(width)]


@pytest.mark.parametrize(("name", "width", "widths"), [("avx512vnni", 64, (4,)), ("neon", 16, (8,))])
def test_all_but_the_one_instruction(run_program, tmp_path, name, width, widths):
    run_stand_in(run_program, tmp_path, name, width, widths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"),
    [("avx512vnni", 64), ("avxvnni", 32), ("avx2", 32), ("neon", 16), ("portable", 16), ("portable", 64)],
)
def test_all_widths_but_not_the_one_instruction(run_program, tmp_path, name, width):
    run_stand_in(run_program, tmp_path, name, width, ALL_WIDTHS)


@pytest.fixture
def no_cache(tmp_path):
    """Environment of a process that keeps no compiled code: a folder below a file cannot be made."""
    (tmp_path / "file").touch()
    return {
        "LLMQ_CACHE_DIR": f"{tmp_path}/file/a",
        "XDG_CACHE_HOME": f"{tmp_path}/file/b",
        "HOME": f"{tmp_path}/file/c",
    }


INSTRUCTIONS = {
    "avx512vnni": r"\bvpdpbusd\s.*%zmm\d+$",
    "avxvnni": r"\{vex\}\s+vpdpbusd\s.*%ymm\d+$",
    "neon": r"\bsdot\s+v\d+\.4s, v\d+\.16b, v\d+\.16b$",
}
# Of decoding, planes times rows of a step; of prefill, vectors of a tile times tokens times steps.
LEAST = {"avx512vnni": (12, 48), "avxvnni": (8, 16), "neon": (8, 32)}


@pytest.mark.parametrize("name", sorted(INSTRUCTIONS))
def test_workers_use_the_instruction(run_program, tmp_path, no_cache, name):
    workers = "decode_rows:4,5,1", "prefill_rows:4,5,1"
    done = run_program("cross_compile", name, tmp_path, *workers, **no_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    for file, least in zip(("decode_rows-4-5-1", "prefill_rows-4-5-1"), LEAST[name], strict=True):
        text = (tmp_path / f"{file}.s").read_text()
        assert len(re.findall(INSTRUCTIONS[name], text, re.MULTILINE)) >= least


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-gcc")),
    reason="needs the Debian packages qemu-user and gcc-aarch64-linux-gnu",
)
def test_neon_under_emulation(run_program, tmp_path, no_cache):
    done = run_program("emulated_neon", tmp_path, *ALL_WIDTHS, **no_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 5 * len(ALL_WIDTHS) + 3
