import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.norm import add_norm, add_norm_reference, rms_norm, rms_norm_reference


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 200),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(rows, columns, size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, columns)) * size).astype(np.float32)
    weight = rng.standard_normal(columns).astype(np.float32)
    np.testing.assert_allclose(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), rtol=2e-5, atol=1e-7)


def test_zeros_stay_zero_and_nan_stays_in_its_row():
    x = np.zeros((3, 8), np.float32)
    x[1, 2], x[2, 2] = np.nan, np.inf
    found = rms_norm(x, np.ones(8, np.float32), 1e-6)
    assert not found[0].any()
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2, 2])


def test_may_write_over_its_input():
    x = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32)
    weight = np.full(33, 2.0, np.float32)
    expected = rms_norm(x, weight, 1e-5)
    assert rms_norm(x, weight, 1e-5, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_takes_read_only_arrays():
    x, weight = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    x.flags.writeable = weight.flags.writeable = False
    np.testing.assert_allclose(rms_norm(x, weight, 0.0), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (np.ones((2, 4), np.float32), np.ones(5, np.float32)),
        (np.ones((2, 4), np.float32), np.ones(4, np.float64)),
        (np.ones(4, np.float32), np.ones(4, np.float32)),
    ],
)
def test_refuses_what_does_not_fit(x, weight):
    with pytest.raises((TypeError, ValueError)):
        rms_norm(x, weight, 1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), columns=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_adding_first_agrees_with_the_reference(rows, columns, seed):
    rng = np.random.default_rng(seed)
    x, delta = rng.standard_normal((2, rows, columns)).astype(np.float32)
    weight = rng.standard_normal(columns).astype(np.float32)
    expected, total = add_norm_reference(x, delta, weight, 1e-5), x + delta
    np.testing.assert_allclose(add_norm(x, delta, weight, 1e-5), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(x, total)


def test_adding_may_write_over_what_is_added():
    x, delta = np.random.default_rng(0).standard_normal((2, 4, 33)).astype(np.float32)
    weight = np.full(33, 2.0, np.float32)
    expected = add_norm_reference(x, delta, weight, 1e-5)
    assert add_norm(x, delta, weight, 1e-5, out=delta) is delta
    np.testing.assert_allclose(delta, expected, rtol=2e-5, atol=1e-6)


def test_adding_keeps_nan_in_its_row():
    x, delta = np.ones((2, 8), np.float32), np.ones((2, 8), np.float32)
    delta[1, 3] = np.nan
    found = add_norm(x, delta, np.ones(8, np.float32), 1e-6)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_adding_refuses_what_does_not_fit():
    x, weight = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    for delta in (np.ones((3, 4), np.float32), np.ones((2, 5), np.float32), np.ones(4, np.float32)):
        with pytest.raises(ValueError):
            add_norm(x, delta, weight, 1e-5)
    with pytest.raises(ValueError):
        add_norm(x[:, ::2], x[:, ::2].copy(), weight[:2].copy(), 1e-5)
