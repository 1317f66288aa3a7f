import doctest

import numpy as np
import pytest

from llmq.evaluate import estimates
from llmq.evaluate.estimates import estimate


def test_doctest():
    assert doctest.testmod(estimates).failed == 0


def test_coverage_of_the_truth():
    """Values that share something within their window are far less sure than as many independent ones."""
    rng = np.random.default_rng(0)
    sizes = np.full(40, 25)
    plain = clustered = 0
    for _ in range(400):
        values = np.repeat(rng.standard_normal(40), 25) + rng.standard_normal(1000)
        found = estimate(values, sizes)
        plain += abs(found.mean) < 1.96 * found.se
        clustered += abs(found.mean) < 1.96 * found.se_clustered
    assert clustered / 400 == pytest.approx(0.95, abs=0.03)
    assert plain / 400 < 0.6


def test_windows_of_other_sizes_and_of_one_value():
    values = np.array([1.0, 2.0, 3.0, 10.0])
    found = estimate(values, np.array([3, 1]))
    assert found.se == pytest.approx(values.std(ddof=1) / 2)
    assert found.se_clustered == pytest.approx(np.sqrt(2 * ((6 - 3 * 4) ** 2 + (10 - 4) ** 2)) / 4)
    alone = estimate(values[:1], np.array([1]))
    assert alone.mean == 1
    assert np.isnan([alone.se, alone.se_clustered]).all()


def test_infinity_is_no_error():
    found = estimate(np.array([np.inf, 1.0, 2.0]), np.array([2, 1]))
    assert found.mean == np.inf
