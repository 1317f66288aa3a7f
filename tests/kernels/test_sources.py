"""The kernels that quantize read float16, bfloat16 and float32 alike."""

import ml_dtypes
import numpy as np
import pytest

from llmq_kernels.floats import source_bits
from llmq_kernels.layout import SCALE_KINDS, Grid
from llmq_kernels.quantize import quantize
from llmq_kernels.ranges import range_scales
from llmq_kernels.search import search_scales

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("columns", [24, 1600])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("grid", [Grid(4, 8), Grid(3, 8, symmetric=False), Grid(1, 8), Grid(2, -1), Grid(8, -1)])
def test_halves_give_what_the_same_values_in_float32_give(special_weight, dtype, grid, columns):
    group_size = columns if grid.group_size == -1 else grid.group_size
    grid = Grid(grid.bits, group_size, symmetric=grid.symmetric, scale_kind=SCALE_KINDS["bfloat16"])
    weight = np.clip(special_weight(5, columns, 8), -60000, 60000).astype(HALVES[dtype])
    for choose in (range_scales, search_scales):
        scale, zero_point = choose(weight, grid)
        expected = choose(weight.astype(np.float32), grid)
        np.testing.assert_array_equal(scale, expected[0])
        if zero_point is not None:
            np.testing.assert_array_equal(zero_point, expected[1])
        packed = quantize(weight, grid, scale, zero_point).packed
        np.testing.assert_array_equal(packed, quantize(weight.astype(np.float32), grid, scale, zero_point).packed)


@pytest.mark.parametrize("dtype", [*HALVES.values(), np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("choose", [range_scales, search_scales])
def test_nan_and_infinity_are_refused(dtype, value, choose):
    weight = np.ones((3, 64), dtype)
    weight[2, 63] = value
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        choose(weight, Grid(4, 32))
    assert choose(weight[:2], Grid(4, 32))[0].shape == (2, 4)


def test_bits_are_those_of_the_source():
    half = np.ones((2, 3), ml_dtypes.bfloat16)
    bits, kind = source_bits("weight", half)
    assert np.shares_memory(bits, half)
    assert (bits.dtype, kind) == (np.uint16, SCALE_KINDS["bfloat16"])
    assert source_bits("weight", np.ones((2, 3)))[0].dtype == np.uint32
    for wrong in (np.ones((2, 3), np.complex64), ["a"]):
        with pytest.raises(TypeError):
            source_bits("weight", wrong)
    with pytest.raises(ValueError, match="shape"):
        source_bits("weight", np.ones(3, np.float16))
