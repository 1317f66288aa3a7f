import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.inputs import (
    input_parameters,
    input_parameters_reference,
    quantize_inputs,
    quantize_inputs_reference,
)


def drawn(rng, shape):
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6)
    odd = rng.random(shape)
    x[odd < 0.05], x[odd > 0.97] = 0, np.rint(x[odd > 0.97])
    return x.astype(np.float32)


@given(
    shape=st.sampled_from([(1, 1), (3, 7), (5, 64), (2, 3, 4, 9), (4,), (0, 5), (3, 0)]),
    bits=st.integers(2, 8),
    each=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_equal_the_reference(shape, bits, each, seed):
    rng = np.random.default_rng(seed)
    x = drawn(rng, shape)
    size, half = shape[0] if each else (), 1 << (bits - 1)
    scale = (np.abs(x).max(initial=1e-3) / half * rng.uniform(0.3, 1.5, size)).astype(np.float32)
    point = rng.integers(-half, half, size)
    found = quantize_inputs(x, scale, point, bits=bits)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, quantize_inputs_reference(x, scale, point, bits))


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_parameters_equal_the_reference(rows, columns, bits, symmetric, seed):
    rng = np.random.default_rng(seed)
    x = drawn(rng, (rows, columns))
    for found, expected in zip(
        input_parameters(x, bits, symmetric=symmetric, per_row=True),
        input_parameters_reference(x, bits, symmetric=symmetric),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(
        input_parameters(x, bits, symmetric=symmetric),
        input_parameters_reference(x.reshape(1, -1), bits, symmetric=symmetric),
        strict=True,
    ):
        assert found.shape == ()
        assert found == expected[0]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_uses_all_codes_and_keeps_zero(bits, symmetric):
    x = np.linspace(-3, 7.1, 1000, dtype=np.float32)
    scale, point = input_parameters(x, bits, symmetric=symmetric)
    codes = quantize_inputs(x, scale, point, bits=bits)
    half = 1 << (bits - 1)
    assert codes.max() == half - 1
    assert codes.min() == (np.rint(-3 / scale) if symmetric else -half)
    assert quantize_inputs(np.zeros(1, np.float32), scale, point, bits=bits)[0] == point
    # Rounding of the zero point moves the ends of the range by half a step at most.
    assert np.abs((codes - np.float64(point)) * scale - x).max() <= scale * (1 if not symmetric else 0.5001)


def test_zeros_and_largest_numbers():
    for x in (np.zeros((2, 3), np.float32), np.zeros((2, 0), np.float32)):
        scale, point = input_parameters(x, per_row=True)
        assert scale.tolist() == [2.0**-126] * 2
        assert point.tolist() == [-128] * 2
        assert not (quantize_inputs(x, scale, point) - point[:, None]).any()
    most = np.finfo(np.float32).max
    scale, point = input_parameters(np.array([[-most, most]], np.float32))
    assert np.isfinite(scale)
    assert quantize_inputs(np.array([[-most, 0, most]], np.float32), scale, point).tolist() == [[-128, point, 127]]


def test_nan_and_infinity():
    x = np.array([[np.nan, np.inf, -np.inf, 0.0]], np.float32)
    assert quantize_inputs(x, 0.1, 3).tolist() == [[-128, 127, -128, 3]]
    for value in (np.nan, np.inf, -np.inf):
        for place in (0, 30, 66):
            x = np.ones((2, 67), np.float32)
            x[1, place] = value
            for each in (True, False):
                with pytest.raises(ValueError, match="inputs must be finite"):
                    input_parameters(x, per_row=each)


def test_writes_into_out():
    x = np.array([[1.0, -2.0]], np.float32)
    out = np.zeros((1, 2), np.int8)
    assert quantize_inputs(x, 1.0, out=out) is out
    assert out.tolist() == [[1, -2]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"scale": np.float32(np.inf)}, ValueError, "scale must be positive and finite"),
        ({"zero_point": 8, "bits": 4}, ValueError, "zero_point must be -8 to 7, found 8"),
        ({"bits": 1}, ValueError, "bits of inputs must be 2 to 8, not 1"),
        ({"x": np.zeros((2, 2), np.complex64)}, TypeError, "x must be float32, not complex64"),
        ({"out": np.zeros((2, 3), np.int8)}, ValueError, r"of shape \(2, 2\), not \(2, 3\)"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        quantize_inputs(**({"x": np.zeros((2, 2), np.float32), "scale": 1.0} | arguments))
