import numba
import numpy as np
import pytest

from llmq_kernels.quantize import codes_reference
from llmq_kernels.rounding import round_codes, round_codes_reference


@numba.njit
def find(x, place, scale, levels, inverse, codes):
    round_codes(x, place, scale, levels, inverse, codes)


def rounded(x, scale, bits, zero, inverse, narrow=0):
    levels = (np.float32(narrow - zero), np.float32(2**bits - 1 - zero), zero)
    codes = np.empty(x.size, np.uint8)
    find(x, (0, x.size), np.float32(scale), levels, np.float32(inverse), codes)
    np.testing.assert_array_equal(codes, round_codes_reference(x, np.float32(scale), levels, np.float32(inverse)))
    return codes


def test_only_the_run_is_touched():
    x, codes = np.arange(100, dtype=np.float32), np.full(100, 99, np.uint8)
    find(x, (3, 45), np.float32(1), (np.float32(-8), np.float32(7), 8), np.float32(1), codes)
    assert codes[3:48].tolist() == [min(i + 8, 15) for i in range(3, 48)]
    assert (codes[:3] == 99).all()
    assert (codes[48:] == 99).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zero", [0, 1, 3, 128, 255])
def test_dividing_equals_the_reference(bits, zero):
    zero = min(zero, 2**bits - 1)
    x = np.random.default_rng(bits).standard_normal(1000).astype(np.float32) * 50
    x[:4] = [0.0, -0.0, 3e38, -3e38]
    for scale in (0.7, -1e-3, 2.0**-126):
        with np.errstate(over="ignore"):
            expected = codes_reference(x, np.float32(scale), np.float32(zero), bits, False)
        np.testing.assert_array_equal(rounded(x, scale, bits, zero, 0.0), expected)


@pytest.mark.parametrize("scale", [*np.random.default_rng(0).integers(1024, 2048, 24).tolist(), 1024, 1025, 2047])
def test_multiplying_by_the_inverse_rounds_like_dividing(scale):
    """All 11-bit numbers of every exponent that matters, by 11-bit scales: ties among them."""
    significands = np.arange(-2047, 2048, dtype=np.float32)
    x = (significands[:, None] * np.float32(2.0) ** np.arange(-3, 12, dtype=np.float32)).ravel()
    for exponent in (-24, 0, 5):
        s = np.float32(scale * 2.0**exponent)
        inverse = np.float32(1.0) / s
        for zero in (0, 127, 128):
            expected = codes_reference(x * np.float32(2.0**exponent), s, np.float32(zero), 8, False)
            np.testing.assert_array_equal(rounded(x * np.float32(2.0**exponent), s, 8, zero, inverse), expected)


def test_a_value_on_the_half_goes_to_the_even_code_though_the_inverse_is_rounded():
    for scale in np.arange(1025, 2048, 2, dtype=np.float32):
        halves = (np.arange(-15, 16, 2, dtype=np.float32) * scale / 2).astype(np.float32)
        expected = np.clip(np.rint(np.arange(-15, 16, 2) / 2), -8, 7) + 8
        assert rounded(halves, scale, 4, 8, np.float32(1.0) / scale).tolist() == expected.tolist()


def test_values_far_beyond_the_grid_are_clamped():
    x = np.array([3e38, -3e38, 1e30, -1e30, 600.0, -600.0], np.float32)
    assert rounded(x, 2.0**-24, 8, 128, 2.0**24).tolist() == [255, 0, 255, 0, 255, 0]
    assert rounded(x[4:], 1.0, 4, 8, 1.0, narrow=1).tolist() == [15, 1]
