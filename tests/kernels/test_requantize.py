import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.requantize import (
    bias_codes,
    bias_codes_reference,
    dequantize_outputs,
    dequantize_outputs_reference,
    fixed_point,
    requantize,
    requantize_reference,
)

SHAPES = [(1, 1), (3, 17), (2, 5, 3, 4), (1, 3, 33), (0, 4), (2, 0, 3)]


@given(
    shape=st.sampled_from(SHAPES),
    bias=st.sampled_from([None, np.int32, np.float32]),
    each=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_floats_equal_the_reference(shape, bias, each, seed):
    rng = np.random.default_rng(seed)
    sums = rng.integers(-(2**30), 2**30, shape, np.int32)
    scales = [
        rng.uniform(1e-6, 2, size if own else ()).astype(np.float32) for size, own in zip(shape, each, strict=False)
    ]
    if bias is not None:
        bias = rng.integers(-(2**29), 2**29, shape[1]).astype(bias)
    found = dequantize_outputs(sums, *scales, bias)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, dequantize_outputs_reference(sums, *scales, bias))


@given(shape=st.sampled_from(SHAPES), biased=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_codes_equal_the_reference(shape, biased, seed):
    rng = np.random.default_rng(seed)
    reach = 2 ** int(rng.integers(1, 31))
    sums = rng.integers(-reach, reach, shape, np.int32)
    multiplier, shift = fixed_point(rng.uniform(0.2, 3, shape[1]) * 100 / reach)
    bias = rng.integers(-reach, reach, shape[1], np.int32) if biased else None
    others = {"bias": bias, "zero_point": int(rng.integers(-128, 128)), "limits": (-100, 90)}
    found = requantize(sums, multiplier, shift, **others)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, requantize_reference(sums, multiplier, shift, **others))


@given(rows=st.integers(0, 40), n=st.sampled_from([None, 1, 3]), seed=st.integers(0, 2**32 - 1))
def test_bias_codes_equal_the_reference(rows, n, seed):
    rng = np.random.default_rng(seed)
    bias = (rng.standard_normal(rows) * 10.0 ** rng.uniform(-3, 12, rows)).astype(np.float32)
    x_scale = rng.uniform(1e-6, 2, () if n is None else n).astype(np.float32)
    w_scale = rng.uniform(1e-6, 2, rows).astype(np.float32)
    for found, expected in zip(
        bias_codes(bias, x_scale, w_scale, 2.0**30),
        bias_codes_reference(bias, x_scale, w_scale, 2.0**30),
        strict=True,
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_halves_go_to_even():
    multiplier, shift = fixed_point(np.array([0.5]))
    sums = np.arange(-7, 8, dtype=np.int32).reshape(-1, 1)
    np.testing.assert_array_equal(requantize(sums, multiplier, shift)[:, 0], np.rint(sums[:, 0] / 2))


def test_extremes_are_clipped():
    multiplier, shift = fixed_point(np.array([2.0**-31, 1.0, 2.0**29]))
    sums = np.array([[-(2**31)] * 3, [2**31 - 1] * 3, [0] * 3], np.int32)
    found = requantize(sums, multiplier, shift, zero_point=5)
    assert found.tolist() == [[4, -128, -128], [6, 127, 127], [5, 5, 5]]
    relu = requantize(sums, multiplier, shift, zero_point=5, limits=(5, 127))
    assert relu.tolist() == [[5, 5, 5], [6, 127, 127], [5, 5, 5]]


@given(st.floats(2.0**-31, 2.0**30, exclude_max=True))
def test_fixed_point_is_close(factor):
    multiplier, shift = fixed_point(np.array([factor]))
    assert 2**30 <= multiplier[0] <= 2**31 - 1
    assert 1 <= shift[0] <= 61
    assert abs(multiplier[0] * 2.0 ** -int(shift[0]) / factor - 1) <= 2.0**-30


def test_writes_into_out():
    sums, out = np.ones((2, 3), np.int32), np.zeros((2, 3), np.float32)
    assert dequantize_outputs(sums, 2.0, 0.25, out=out) is out
    assert (out == 0.5).all()


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda s: dequantize_outputs(s.astype(np.int64), 1.0, 1.0), TypeError, "sums must be int32, not int64"),
        (lambda s: dequantize_outputs(s[0], 1.0, 1.0), ValueError, r"shape \(n, channels, ...\), not \(3,\)"),
        (lambda s: dequantize_outputs(s, np.ones(3, np.float32), 1.0), ValueError, r"x_scale .* \(2,\), not \(3,\)"),
        (lambda s: dequantize_outputs(s, 1.0, 1.0, np.zeros(2, np.int32)), ValueError, r"bias .* \(3,\), not \(2,\)"),
        (lambda s: requantize(s, np.array([1.5]), np.array([3])), TypeError, "multiplier must be int32, not float64"),
        (lambda s: requantize(s, np.array([1]), np.array([63])), ValueError, "shift 1 to 62"),
        (lambda s: requantize(s, np.array([1]), np.array([3]), limits=(9, 2)), ValueError, "not 9 and 2"),
        (lambda s: fixed_point(np.array([0.0])), ValueError, "factors must be"),
        (lambda s: fixed_point(np.array([np.nan])), ValueError, "factors must be"),
    ],
)
def test_arguments_that_are_refused(work, error, message):
    with pytest.raises(error, match=message):
        work(np.zeros((2, 3), np.int32))
