"""Percentiles from histograms, against sorting all the data."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed_data import pieces, samples

from llmq.observers import Percentile
from llmq.spec import QuantSpec

ASYMMETRIC, SYMMETRIC = QuantSpec(bits=8, symmetric=False), QuantSpec(bits=8)
PERCENTILES = st.sampled_from([100.0, 99.99, 99.9, 99, 90.0, 50.0, 1e-3])


def observed(x: np.ndarray, seed: int, spec: QuantSpec, percentile: float, bins: int = 2048) -> Percentile:
    observer = Percentile(spec, percentile=percentile, bins=bins)
    for piece in pieces(x, seed):
        observer.observe(piece)
    return observer


@settings(max_examples=60, deadline=None)
@given(x=samples, seed=st.integers(0, 1000), percentile=PERCENTILES, bins=st.sampled_from([16, 2048]))
def test_ends_lie_less_than_a_bin_beyond_the_exact_ones(x: np.ndarray, seed: int, percentile: float, bins: int) -> None:
    observer = observed(x, seed, ASYMMETRIC, percentile, bins)
    assert observer.histogram is not None
    width = observer.histogram.width[0]
    low, high = (float(end) for end in observer.range())
    ordered = np.sort(x).astype(np.float64)
    clipped = int(x.size * (100 - Fraction(str(percentile))) / 200)
    exact = ordered[clipped], ordered[x.size - 1 - clipped]
    # Fractions: next to a bin, far smaller values are lost in rounding.
    assert 0 <= Fraction(exact[0]) - Fraction(low) < Fraction(width)
    assert exact[1] <= high <= exact[1] + width
    assert ordered[0] <= low <= high <= ordered[-1]


@settings(max_examples=60, deadline=None)
@given(x=samples, seed=st.integers(0, 1000), percentile=PERCENTILES, bins=st.sampled_from([16, 2048]))
def test_symmetric_ranges_cut_magnitudes(x: np.ndarray, seed: int, percentile: float, bins: int) -> None:
    observer = observed(x, seed, SYMMETRIC, percentile, bins)
    assert observer.histogram is not None
    low, high = (float(end) for end in observer.range())
    assert low == -high
    ordered = np.sort(np.abs(x)).astype(np.float64)
    exact = ordered[x.size - 1 - int(x.size * (100 - Fraction(str(percentile))) / 100)]
    assert exact <= high <= min(exact + observer.histogram.width[0], ordered[-1])


def test_the_share_is_the_decimal_that_was_written() -> None:
    """In floating point 99.9 % of 1000 are a little more than 999."""
    x = np.append(np.full(999, 1.0), 100.0)
    assert observed(x, 0, SYMMETRIC, 99.9).range()[1] < 2


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5, np.nan])
def test_refuses_shares_that_are_none(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must be above 0 and at most 100"):
        Percentile(ASYMMETRIC, percentile=percentile)
