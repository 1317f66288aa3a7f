import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.lanes import (
    LANES,
    fill_tile,
    fill_tile_reference,
    fit_sums,
    fit_sums_reference,
    measure,
    measure_reference,
)


@numba.njit
def call_measure(tile, weights, scale, lowest, span, error):
    measure(tile, weights, scale, lowest, span, error)


@numba.njit
def call_fit_sums(tile, weights, scale, lowest, span, sums):
    fit_sums(tile, weights, scale, lowest, span, sums)


@numba.njit
def call_fill_tile(groups, factor, tile):
    fill_tile(groups, factor, tile)


def case(seed, rows, candidates):
    rng = np.random.default_rng(seed)
    tile = rng.standard_t(3, (rows, LANES)).astype(np.float32)
    scale = (rng.uniform(0.01, 1, (candidates, LANES)) * rng.choice([-1, 1], (candidates, LANES))).astype(np.float32)
    lowest = -rng.integers(0, 16, (candidates, LANES)).astype(np.float32)
    weights = rng.exponential(1.0, tile.shape).astype(np.float32)
    return tile, weights, scale, lowest, np.float32(15)


@given(seed=st.integers(0, 2**32 - 1), quads=st.integers(0, 40), candidates=st.integers(0, 9))
def test_measure_equals_the_reference_to_the_bit(seed, quads, candidates):
    tile, weights, scale, lowest, span = case(seed, 4 * quads, candidates)
    error = np.full((candidates, LANES), np.nan, np.float32)
    call_measure(tile, weights, scale, lowest, span, error)
    np.testing.assert_array_equal(error, measure_reference(tile, weights, scale, lowest, span))


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 70))
def test_fit_sums_equal_the_reference_to_the_bit(seed, rows):
    tile, weights, scale, lowest, span = case(seed, rows, 1)
    sums = np.full((2, LANES), np.nan, np.float32)
    call_fit_sums(tile, weights, scale, lowest, span, sums)
    np.testing.assert_array_equal(sums, fit_sums_reference(tile, weights, scale, lowest, span))


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 16, 63, 64])
def test_fill_tile_transposes_whole_eights(columns):
    groups = np.random.default_rng(columns).standard_normal((LANES, columns)).astype(np.float32)
    factor = np.exp2(np.arange(LANES, dtype=np.float32))[None]
    tile = np.zeros((columns, LANES), np.float32)
    call_fill_tile(groups, factor, tile)
    expected = fill_tile_reference(groups, factor[0])
    expected[columns // 8 * 8 :] = 0.0
    np.testing.assert_array_equal(tile, expected)


def test_overflow_stays_in_its_lane():
    tile, weights, scale, lowest, span = case(0, 8, 1)
    tile[3, 5] = np.inf
    error = np.empty((1, LANES), np.float32)
    call_measure(tile, weights, scale, lowest, span, error)
    np.testing.assert_array_equal(np.isfinite(error[0]), np.arange(LANES) != 5)
