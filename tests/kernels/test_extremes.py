import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.extremes import extreme_bits, extreme_bits_reference, largest_bits, largest_bits_reference


@numba.njit
def find(bits, row, start, count):
    return extreme_bits(bits, row, start, count)


@numba.njit
def find_largest(bits, row, start, count):
    return largest_bits(bits, row, start, count)


@given(
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 40),
    count=st.integers(0, 90),
    dtype=st.sampled_from([np.uint16, np.uint32]),
    special=st.booleans(),
)
def test_equals_the_reference(seed, start, count, dtype, special):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2 ** (8 * dtype().itemsize), (3, 130), dtype)
    if special:
        bits[:] = rng.choice([0, 1 << (8 * dtype().itemsize - 1)], bits.shape)
    found = tuple(map(int, find(bits, 1, start, count)))
    assert found == extreme_bits_reference(bits[1, start : start + count])
    assert find_largest(bits, 1, start, count) == largest_bits_reference(bits[1, start : start + count])


@pytest.mark.parametrize("count", [1, 7, 8, 16, 17, 64, 100])
def test_float16_and_float32_agree_with_numpy(count):
    values = np.random.default_rng(count).standard_normal((1, count)).astype(np.float16)
    expected = [min(values.min(), 0), max(values.max(), 0)]
    for floats, integer in ((values, np.uint16), (values.astype(np.float32), np.uint32)):
        found = np.array(find(floats.view(integer), 0, 0, count), integer).view(floats.dtype)
        assert found.tolist() == expected


@pytest.mark.parametrize("at", [0, 15, 16, 37])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_extremes(at, value):
    values = np.ones((1, 40), np.float32)
    values[0, at] = value
    found = np.array(find(values.view(np.uint32), 0, 0, 40), np.uint32).view(np.float32)
    assert not np.isfinite(found).all()
    assert not np.isfinite(np.uint32(find_largest(values.view(np.uint32), 0, 0, 40)).view(np.float32))
