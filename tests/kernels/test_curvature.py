import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.curvature import factorize, factorize_reference, order_reference


def moments_of(columns, tokens, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) @ (np.eye(columns) + 0.3 * rng.standard_normal((columns, columns)))
    x = (x * rng.exponential(1.0, columns)).astype(np.float32)
    return x.T @ x / np.float32(tokens)


@settings(max_examples=30)
@given(groups=st.integers(1, 40), size=st.sampled_from([1, 8, 16, 20]), seed=st.integers(0, 2**32 - 1))
def test_the_factor_is_that_of_the_reference(groups, size, seed):
    columns = groups * size
    moments = moments_of(columns, 2 * columns + 8, seed)
    before = moments.copy()
    found = factorize(moments, size)
    assert np.array_equal(moments, before)
    assert np.array_equal(found.order, order_reference(moments.diagonal(), size))
    exact = factorize_reference(moments, found.order, found.damping)
    assert np.allclose(np.tril(found.matrix, -1), np.tril(exact, -1), atol=2e-3)
    damped = moments[np.ix_(found.order, found.order)].astype(np.float64)
    damped[np.diag_indices(columns)] += found.damping * damped.diagonal().mean()
    for start in range(0, columns, 7):
        stop = min(start + 7, columns)
        assert np.allclose(found.rows(start, stop), damped[start:stop], rtol=1e-5, atol=1e-6)


def test_panels_meet(monkeypatch):
    moments = moments_of(700, 900)
    found = factorize(moments, 100)
    exact = factorize_reference(moments, found.order, found.damping)
    assert np.abs(np.tril(found.matrix, -1) - np.tril(exact, -1)).max() < 1e-4


def test_groups_stay_together_and_the_largest_energies_stand_last():
    energy = np.random.default_rng(0).exponential(1.0, 60).astype(np.float32)
    order = order_reference(energy, 20)
    groups = order.reshape(3, 20) // 20
    assert (groups == groups[:, :1]).all()
    assert (np.diff(energy[order].reshape(3, 20), axis=1) >= 0).all()
    assert order[-1] == energy.argmax()


def test_inputs_that_never_vary_take_more_damping():
    x = np.ones((1, 64), np.float32)
    found = factorize(x.T @ x, 16, damping=1e-9)
    assert found.damping > 1e-9
    assert np.isfinite(found.matrix).all()


def test_channels_that_are_always_zero():
    found = factorize(np.zeros((32, 32), np.float32), 16)
    assert np.array_equal(np.tril(found.matrix, -1), np.zeros((32, 32)))


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        (np.eye(4), "float32"),
        (np.ones((4, 3), np.float32), r"float32 \(n, n\)"),
        (np.full((4, 4), np.nan, np.float32), "finite"),
        (np.eye(6, dtype=np.float32), "groups of 4"),
        (-np.eye(4, dtype=np.float32), "positive definite"),
    ],
)
def test_what_does_not_fit(moments, words):
    with pytest.raises(ValueError, match=words):
        factorize(moments, 4)


def test_in_the_place_of_the_moments():
    moments = moments_of(60, 100)
    apart = factorize(moments, 20)
    found = factorize(moments, 20, overwrite=True)
    assert found.matrix is moments
    assert np.array_equal(found.matrix, apart.matrix)
