"""Counting in bins, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.histogram import count_in_bins, count_in_bins_reference


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(0, 5), st.integers(0, 300)),
    bins=st.integers(1, 70),
    exponent=st.sampled_from([-149, -130, -20, 0, 3, 100]),
)
def test_counts_as_the_reference_does(seed, shape, bins, exponent):
    rng = np.random.default_rng(seed)
    exponents = np.full(shape[0], exponent) + rng.integers(0, 3, shape[0])
    first = rng.integers(-100, 100, shape[0])
    place = first[:, None] + rng.integers(0, bins, shape)
    # On edges, and somewhere in bins; subnormal widths have no inside.
    inside = rng.integers(0, 4, shape) / 4 if exponent > -130 else 0
    rows = np.ldexp(place + inside, exponents[:, None]).astype(np.float32)
    counts = rng.integers(0, 9, (shape[0], bins))
    expected = counts + count_in_bins_reference(rows, exponents, first, bins)
    count_in_bins(rows, exponents, first, counts)
    np.testing.assert_array_equal(counts, expected)


def test_zeros_of_both_signs_share_a_bin():
    counts = np.zeros((1, 2), np.int64)
    count_in_bins(np.array([[0.0, -0.0]], np.float32), np.array([0]), np.array([-1]), counts)
    assert counts.tolist() == [[0, 2]]


@pytest.mark.parametrize("value", [4.0, -1.0, np.nan, np.inf, -np.inf])
def test_says_what_lies_in_no_bin(value):
    counts = np.zeros((1, 4), np.int64)
    with pytest.raises(ValueError, match="1 values lie in none of the bins"):
        count_in_bins(np.array([[1.0, value]], np.float32), np.array([0]), np.array([0]), counts)
    assert counts.tolist() == [[0, 1, 0, 0]]


def test_refuses_what_does_not_fit():
    rows, one = np.zeros((1, 3), np.float32), np.zeros(1, np.int64)
    read_only = np.zeros((1, 4), np.int64)
    read_only.flags.writeable = False
    for counts in (np.zeros((1, 4)), np.zeros(4, np.int64), read_only, np.zeros((2, 4), np.int64)):
        with pytest.raises(ValueError, match="counts"):
            count_in_bins(rows, one, one, counts)
    with pytest.raises(ValueError, match="exponent"):
        count_in_bins(rows, np.zeros(1), one, np.zeros((1, 4), np.int64))
    with pytest.raises(ValueError, match="first"):
        count_in_bins(rows, one, np.zeros(2, np.int64), np.zeros((1, 4), np.int64))
    with pytest.raises(TypeError, match="rows"):
        count_in_bins(rows.astype(complex), one, one, np.zeros((1, 4), np.int64))
