"""Costs of clipping, against plain NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.clipping import (
    Candidates,
    divergences,
    divergences_reference,
    squared_errors,
    squared_errors_reference,
)


def drawn(seed, channels, bins, bits, n):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 1000, (channels, bins)) * (rng.random((channels, bins)) < rng.random())
    centres = np.sort(rng.standard_normal((channels, bins)), axis=1)
    middle = 0.5 if bits == 1 else rng.integers(0, 2**bits, (channels, n)).astype(np.float64)
    scale = np.exp2(rng.uniform(-9, 1, (channels, n)))
    lowest = int(rng.integers(0, 2)) if bits > 1 else 0
    return counts, centres, Candidates(scale, np.broadcast_to(middle, scale.shape), lowest, 2**bits - 1)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(0, 3),
    bins=st.integers(1, 100),
    bits=st.integers(1, 8),
    n=st.integers(0, 6),
)
def test_costs_are_those_of_the_references(seed, channels, bins, bits, n):
    counts, centres, grids = drawn(seed, channels, bins, bits, n)
    expected = squared_errors_reference(counts, centres, grids)
    np.testing.assert_allclose(squared_errors(counts, centres, grids), expected, rtol=1e-10, atol=1e-20)
    expected = divergences_reference(counts, centres, grids)
    np.testing.assert_allclose(divergences(counts, centres, grids), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(1, 8))
def test_divergences_are_never_negative(seed, bits):
    assert (divergences(*drawn(seed, 2, 50, bits, 5)) >= -1e-12).all()


def test_divergence_worked_by_hand():
    """Codes 0 and 1 keep counts 4 and 2; a third value, counted twice, is clipped to the second."""
    grids = Candidates(np.array([[1.0]]), np.array([[0.0]]), 0, 1)
    found = divergences(np.array([[4, 2, 2]]), np.array([[0.0, 1.2, 2.0]]), grids)
    half, thirds = 0.5, (2 / 3, 1 / 3)
    assert found.item() == pytest.approx(sum(half * math.log(half / q) for q in thirds))


def test_empty_histograms_and_grids_that_keep_nothing():
    grids = Candidates(np.array([[1.0]]), np.array([[0.0]]), 0, 3)
    none, far = np.zeros((1, 2), np.int64), np.array([[0, 5]])
    centres = np.array([[0.0, 9.0]])
    assert squared_errors(none, centres, grids).tolist() == [[0.0]]
    assert squared_errors(far, centres, grids).tolist() == [[5 * 36.0]]
    assert divergences(none, centres, grids).tolist() == [[math.inf]]
    assert divergences(far, centres, grids).tolist() == [[math.inf]]
    assert divergences_reference(far, centres, grids).tolist() == [[math.inf]]


def test_refuses_what_does_not_fit():
    counts, centres, grids = drawn(0, 2, 5, 4, 3)
    for cost in (squared_errors, divergences):
        with pytest.raises(ValueError, match="counts"):
            cost(counts.astype(np.float64), centres, grids)
        with pytest.raises(ValueError, match="centres"):
            cost(counts, centres[:, 1:], grids)
        with pytest.raises(ValueError, match="scale"):
            cost(counts, centres, grids._replace(scale=grids.scale[0]))
        with pytest.raises(ValueError, match="zero_point"):
            cost(counts, centres, grids._replace(zero_point=grids.zero_point[:, 1:]))
