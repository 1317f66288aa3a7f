import math

import numpy as np
import pytest

from llmq.evaluate.sums import ErrorSums, decibels, normalized


def test_blocks_count_as_one():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((6, 5)).astype(np.float32)
    y = x + rng.standard_normal((6, 5)).astype(np.float32) / 10
    sums = ErrorSums()
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6)):
        sums.add(x[rows], y[rows])
    difference = (y.astype(np.float64) - x).ravel()
    assert sums.nmse == pytest.approx(difference @ difference / np.square(x.astype(np.float64)).sum())
    assert sums.cosine == pytest.approx(np.corrcoef(np.r_[x.ravel(), -x.ravel()], np.r_[y.ravel(), -y.ravel()])[0, 1])
    assert sums.largest == np.abs(difference).max()


@pytest.mark.parametrize(
    ("x", "y", "nmse", "cosine"), [(0, 0, 0, 1), (0, 1, math.inf, 0), (2, 2, 0, 1), (2, 0, 1, 0), (1, -1, 4, -1)]
)
def test_extremes(x, y, nmse, cosine):
    sums = ErrorSums()
    sums.add(np.float32([x]), np.float32([y]))
    assert (sums.nmse, sums.cosine) == (nmse, cosine)


def test_decibels():
    assert [decibels(n) for n in (0.0, 1.0, 0.01, math.inf)] == [math.inf, 0.0, 20.0, -math.inf]
    assert math.isnan(decibels(normalized(math.nan, 1.0)))
