import numba
import numpy as np
import pytest

from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.widening import widen_run, widen_run_reference


@numba.njit
def widen(bits, kind, place, x):
    widen_run(bits, kind, place, x)


@pytest.mark.parametrize("kind", SCALE_KINDS)
@pytest.mark.parametrize(("start", "count"), [(0, 0), (3, 1), (0, 8), (5, 31), (1, 32), (7, 95), (0, 130)])
def test_equals_the_reference(kind, start, count):
    dtype = np.uint32 if kind == "float32" else np.uint16
    bits = np.random.default_rng(count).integers(0, 2 ** (8 * dtype().itemsize), (3, 130), dtype)
    x = np.full(140, 7, np.float32)
    widen(bits, SCALE_KINDS[kind], (1, start, count), x)
    np.testing.assert_array_equal(x[:count], widen_run_reference(bits[1, start : start + count], SCALE_KINDS[kind]))
    assert (x[count:] == 7).all()


def test_all_numbers_of_16_bits():
    bits = np.arange(65536, dtype=np.uint16).reshape(2, -1)
    for kind in ("float16", "bfloat16"):
        expected = widen_run_reference(bits, SCALE_KINDS[kind])
        for row in range(2):
            x = np.empty(32768, np.float32)
            widen(bits, SCALE_KINDS[kind], (row, 0, 32768), x)
            np.testing.assert_array_equal(x, expected[row])
            np.testing.assert_array_equal(np.signbit(x), np.signbit(expected[row]))
