import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.nonfinite import count_nonfinite, nonfinite_reference

FLOATS = {np.float16: np.uint16, ml_dtypes.bfloat16: np.uint16, np.float32: np.uint32, np.float64: np.uint64}


@given(size=st.integers(0, 300), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(list(FLOATS)))
def test_counts_what_numpy_counts(size, seed, dtype):
    rng = np.random.default_rng(seed)
    integer = FLOATS[dtype]
    infinity = np.array(np.inf, dtype).view(integer)
    x = rng.integers(0, np.iinfo(integer).max, size, integer, endpoint=True)
    x[rng.random(size) < 0.2] |= infinity
    mantissa = ~infinity & (np.iinfo(integer).max >> integer(1))
    x[rng.random(size) < 0.2] &= ~mantissa
    x = x.view(dtype)
    assert count_nonfinite(x) == nonfinite_reference(x)


@pytest.mark.parametrize("at", [0, 1, 15, 16, 63])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_finds_one_anywhere(at, value):
    x = np.zeros((4, 16), np.float32)
    x.flat[at] = value
    assert count_nonfinite(x) == (int(np.isnan(value)), int(np.isinf(value)))
    assert count_nonfinite(x.T) == count_nonfinite(x)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float32"):
        count_nonfinite(np.zeros(3, np.int64))
