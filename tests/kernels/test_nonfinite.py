import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.nonfinite import count_nonfinite


@given(size=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
def test_counts_what_numpy_counts(size, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**32, size, dtype=np.uint32)
    x[rng.random(size) < 0.2] |= 0x7F800000
    x[rng.random(size) < 0.2] &= 0xFF800000
    x = x.view(np.float32)
    assert count_nonfinite(x) == (np.isnan(x).sum(), np.isinf(x).sum())


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
