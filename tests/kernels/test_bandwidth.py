import re

import llvmlite.binding
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels import bandwidth
from llmq_kernels.bandwidth import checksum, checksum_reference


def noise(size):
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


@given(size=st.integers(0, 3000), start=st.integers(0, 9))
def test_sums_words(size, start):
    data = noise(start + size)[start:]
    assert checksum(data) == checksum_reference(data)


@pytest.mark.parametrize("around", [512, 1 << 18, 3 << 18])
@pytest.mark.parametrize("beside", [-9, -1, 0, 1, 8, 513])
def test_chunks_and_streams_meet(around, beside, each_thread_count):
    data = noise(around + beside)
    assert checksum(data) == checksum_reference(data)
    each_thread_count(lambda: [checksum(data).to_bytes(8, "little")])


def test_every_byte_counts():
    data = np.zeros((1 << 18) + 1029, np.uint8)
    for place in (0, 63, 64, 255, 65_535, 65_536, 131_071, 262_143, 262_144, data.size - 1):
        data[place] = 1
        assert checksum(data) == checksum_reference(data) == 1 << 8 * (place % 8)
        data[place] = 0


def test_wraps_and_takes_read_only_data():
    data = np.full(4096, 255, np.uint8)
    data.flags.writeable = False
    assert checksum(data) == checksum_reference(data) == 2**64 - 512


@pytest.mark.parametrize(
    ("data", "error"),
    [(np.zeros(4, np.int8), TypeError), (np.zeros((2, 2), np.uint8), ValueError), (noise(9)[::2], ValueError)],
)
def test_mistakes(data, error):
    with pytest.raises(error):
        checksum(data)


def test_loads_are_as_wide_as_the_machine_has_them():
    compiled = numba.njit(bandwidth._checksum.__wrapped__)
    compiled(noise(10))
    (assembly,) = compiled.inspect_asm().values()
    features = llvmlite.binding.get_host_cpu_features()
    wide = r"vpaddq\s+-?\d*\([^)]*\), %[yz]mm" if features.get("avx2") else r"paddq|ldp\s+q"
    assert len(re.findall(wide, assembly)) >= 8
