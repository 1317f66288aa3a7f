import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import GEOMETRIES, drawn, weight_of

from llmq_kernels.convolution import Convolution
from llmq_kernels.integer_layers import (
    InputGrid,
    RowScales,
    convolution_layer,
    convolution_layer_reference,
    linear_layer,
    linear_layer_reference,
)
from llmq_kernels.integer_weight import IntegerWeight


def grid_of(rng, n, bits, each):
    size, half = n if each else (), 1 << (bits - 1)
    scale = (rng.uniform(0.5, 3, size) / half).astype(np.float32)
    return InputGrid(scale, np.asarray(rng.integers(-half, half, size), np.int32), bits)


def scales_of(rng, rows, bias):
    scale = rng.uniform(0.001, 0.1, rows).astype(np.float32)
    return RowScales(scale, None if bias is None else rng.integers(-9999, 9999, rows).astype(bias))


def floats(rng, shape):
    x = rng.standard_normal(shape).astype(np.float32)
    odd = rng.random(shape)
    x[odd < 0.01], x[odd > 0.99] = np.nan, 1e30
    return x


@settings(max_examples=80)
@given(
    shape=st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(1, 600)),
    bits=st.tuples(st.sampled_from([1, 3, 4, 8]), st.integers(2, 8)),
    symmetric=st.booleans(),
    each=st.booleans(),
    bias=st.sampled_from([None, np.int32, np.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_linear_layers_equal_the_reference(shape, bits, symmetric, each, bias, seed):
    (tokens, rows, columns), rng = shape, np.random.default_rng(seed)
    weight = drawn(rng, rows, columns, bits[0], symmetric)
    x, grid, scales = floats(rng, (tokens, columns)), grid_of(rng, tokens, bits[1], each), scales_of(rng, rows, bias)
    found = linear_layer(x, weight, grid, scales)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, linear_layer_reference(x, weight, grid, scales))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("bias", [None, np.int32, np.float32])
def test_convolutions_equal_the_reference(name, bits, bias):
    geometry, channels, filters = GEOMETRIES[name]
    rng = np.random.default_rng(bits)
    weight = weight_of(rng, geometry, channels, filters, bits)
    for n, height, width in ((1, 13, 21), (3, 9, 8)):
        x, scales = floats(rng, (n, channels, height, width)), scales_of(rng, filters, bias)
        for each in (True, False):
            grid = grid_of(rng, n, 8, each)
            found = convolution_layer(x, weight, geometry, grid, scales)
            expected = convolution_layer_reference(x, weight, geometry, grid, scales)
            np.testing.assert_array_equal(found, expected)


def test_one_weight_serves_many_shapes_and_geometries():
    rng = np.random.default_rng(0)
    weight, scales = drawn(rng, 6, 36, 8), scales_of(rng, 6, np.int32)
    for size in (*range(3, 80), 5, 3):
        x, grid = rng.standard_normal((1, 4, size, 7)).astype(np.float32), grid_of(rng, 1, 8, False)
        geometry = Convolution((3, 3), stride=(1 + size % 3, 1))
        expected = convolution_layer_reference(x, weight, geometry, grid, scales)
        np.testing.assert_array_equal(convolution_layer(x, weight, geometry, grid, scales), expected)
        tokens = rng.standard_normal((size, 36)).astype(np.float32)
        expected = linear_layer_reference(tokens, weight, grid, scales)
        np.testing.assert_array_equal(linear_layer(tokens, weight, grid, scales), expected)


def test_the_same_for_any_number_of_threads(each_thread_count):
    rng = np.random.default_rng(0)
    weight, scales = drawn(rng, 200, 512, 8), scales_of(rng, 200, np.float32)
    x, grid = rng.standard_normal((300, 512)).astype(np.float32), grid_of(rng, 300, 8, True)
    each_thread_count(lambda: [linear_layer(x, weight, grid, scales).tobytes()])


def test_writes_into_out():
    rng = np.random.default_rng(0)
    weight, grid, scales = drawn(rng, 5, 36, 8), grid_of(rng, 1, 8, False), scales_of(rng, 5, None)
    out = np.zeros((2, 5), np.float32)
    x = rng.standard_normal((2, 36)).astype(np.float32)
    assert linear_layer(x, weight, grid, scales, out=out) is out
    np.testing.assert_array_equal(out, linear_layer_reference(x, weight, grid, scales))
    x, out = x.reshape(2, 4, 3, 3), np.zeros((2, 5, 1, 1), np.float32)
    assert convolution_layer(x, weight, Convolution((3, 3)), grid, scales, out=out) is out
    assert out.any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.zeros((2, 9), np.float32)}, ValueError, r"\(rows, 8\), not \(2, 9\)"),
        ({"x": np.zeros((2, 8), np.complex64)}, TypeError, "x must be float32"),
        ({"grid": InputGrid(np.float32(0), np.int32(0))}, ValueError, "scale must be positive"),
        ({"grid": InputGrid(np.ones(3, np.float32), np.int32(0))}, ValueError, r"scale .* \(2,\), not \(3,\)"),
        ({"grid": InputGrid(np.float32(1), np.int32(9), 4)}, ValueError, "zero_point must be -8 to 7, found 9"),
        ({"scales": RowScales(np.ones(4, np.float32))}, ValueError, r"scale .* \(3,\), not \(4,\)"),
        ({"scales": RowScales(np.float32(1), np.zeros(2, np.int32))}, ValueError, r"bias .* \(3,\), not \(2,\)"),
    ],
)
def test_arguments_that_are_refused(changes, error, message):
    arguments = {
        "x": np.zeros((2, 8), np.float32),
        "weight": IntegerWeight.of(np.zeros((3, 8), np.uint8), 4),
        "grid": InputGrid(np.float32(1), np.int32(0)),
        "scales": RowScales(np.float32(1)),
    }
    with pytest.raises(error, match=message):
        linear_layer(**(arguments | changes))
