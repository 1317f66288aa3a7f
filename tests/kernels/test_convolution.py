import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import GEOMETRIES, drawn, weight_of

from llmq_kernels.convolution import Convolution, integer_convolve, integer_convolve_reference
from llmq_kernels.integer_weight import IntegerWeight


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_equals_the_reference(name, bits):
    geometry, channels, filters = GEOMETRIES[name]
    rng = np.random.default_rng(bits)
    for n, height, width, symmetric in ((1, 13, 21, True), (2, 9, 16, False), (3, 7, 8, False)):
        x = rng.integers(-128, 128, (n, channels, height, width), np.int8)
        weight = weight_of(rng, geometry, channels, filters, bits, symmetric)
        points = rng.integers(-128, 128, n, np.int32)
        found = integer_convolve(x, weight, geometry, x_zero_point=points)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, integer_convolve_reference(x, weight, geometry, points))


@pytest.mark.parametrize("bits", range(1, 9))
def test_filters_of_several_blocks(bits):
    rng = np.random.default_rng(bits)
    weight = weight_of(rng, Convolution((3, 3)), 300, 21, bits, False)
    x = rng.integers(-128, 128, (2, 300, 6, 9), np.int8)
    found = integer_convolve(x, weight, Convolution((3, 3)), x_zero_point=-7)
    np.testing.assert_array_equal(found, integer_convolve_reference(x, weight, Convolution((3, 3)), -7))


@settings(max_examples=100)
@given(data=st.data(), bits=st.sampled_from([2, 4, 7, 8]), seed=st.integers(0, 2**32 - 1))
def test_odd_geometries(data, bits, seed):
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    groups = data.draw(st.integers(1, 5))
    geometry = Convolution(
        data.draw(pair),
        stride=data.draw(pair),
        padding=data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))),
        dilation=data.draw(pair),
        groups=groups,
    )
    reach = [
        d * (k - 1) + 1 - 2 * p for d, k, p in zip(geometry.dilation, geometry.kernel, geometry.padding, strict=True)
    ]
    size = [max(1, least) + data.draw(st.integers(0, 19)) for least in reach]
    channels, filters = (groups * data.draw(st.integers(1, 9)) for _ in range(2))
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (data.draw(st.integers(0, 3)), channels, *size), np.int8)
    weight = weight_of(rng, geometry, channels, filters, bits)
    found = integer_convolve(x, weight, geometry, x_zero_point=-7)
    np.testing.assert_array_equal(found, integer_convolve_reference(x, weight, geometry, -7))


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_nothing_saturates(name, bits):
    geometry, channels, filters = GEOMETRIES[name]
    columns = channels // geometry.groups * 9
    for code, value in ((0, -128), (2**bits - 1, -128), (2**bits - 1, 127), (0, 127)):
        x = np.full((1, channels, 9, 11), value, np.int8)
        for points in (None, np.full(filters, 2**bits - 1, np.uint8)):
            weight = IntegerWeight.of(np.full((filters, columns), code, np.uint8), bits, points)
            found = integer_convolve(x, weight, geometry, x_zero_point=127)
            np.testing.assert_array_equal(found, integer_convolve_reference(x, weight, geometry, 127))


def test_the_same_for_any_number_of_threads(each_thread_count):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (1, 24, 29, 31), np.int8)
    cases = [
        (geometry, weight_of(rng, geometry, 24, 48, 8))
        for geometry in (Convolution((3, 3), padding=(1, 1)), Convolution((1, 1)), Convolution((3, 3), groups=24))
    ]
    each_thread_count(lambda: [integer_convolve(x, weight, geometry).tobytes() for geometry, weight in cases])


def test_padding_is_a_true_zero():
    weight = IntegerWeight.of(np.full((1, 9), 1, np.uint8), 4, np.zeros(1, np.uint8))
    x = np.full((1, 1, 3, 3), 5, np.int8)
    geometry = Convolution((3, 3), padding=(1, 1))
    assert not integer_convolve(x, weight, geometry, x_zero_point=5).any()
    assert integer_convolve(x, weight, geometry, x_zero_point=4)[0, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


def test_writes_into_out():
    rng = np.random.default_rng(0)
    geometry = Convolution((3, 3))
    x, weight = rng.integers(-128, 128, (1, 4, 9, 9), np.int8), drawn(rng, 5, 36, 8)
    out = np.zeros((1, 5, 7, 7), np.int32)
    assert integer_convolve(x, weight, geometry, out=out) is out
    np.testing.assert_array_equal(out, integer_convolve_reference(x, weight, geometry))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": (0, 3)}, r"kernel must be two numbers of at least 1, not \(0, 3\)"),
        ({"stride": (1, 0)}, "stride must be"),
        ({"padding": (-1, 0)}, "padding must be two numbers of at least 0"),
        ({"dilation": (1,)}, "dilation must be"),
        ({"groups": 0}, "groups must be at least 1, not 0"),
    ],
)
def test_geometries_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Convolution(**({"kernel": (3, 3)} | changes))


@pytest.mark.parametrize(
    ("x", "geometry", "error", "message"),
    [
        (np.zeros((1, 4, 5, 5), np.float32), Convolution((3, 3)), TypeError, "x must be int8, not float32"),
        (np.zeros((4, 5, 5), np.int8), Convolution((3, 3)), ValueError, r"not \(4, 5, 5\)"),
        (np.zeros((1, 4, 2, 5), np.int8), Convolution((3, 3)), ValueError, "reaches 3 does not fit 2 and padding 0"),
        (np.zeros((1, 3, 5, 5), np.int8), Convolution((3, 3)), ValueError, "3 channels in 1 groups"),
        (np.zeros((1, 4, 5, 5), np.int8), Convolution((3, 3), groups=3), ValueError, "4 channels in 3 groups"),
    ],
)
def test_inputs_that_are_refused(x, geometry, error, message):
    with pytest.raises(error, match=message):
        integer_convolve(x, IntegerWeight.of(np.zeros((6, 36), np.uint8), 4), geometry)
