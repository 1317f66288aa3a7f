import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.rope import rope, rope_reference


def turns(tokens, half, seed=0):
    angles = np.random.default_rng(seed).uniform(-7, 7, (tokens, half)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 6), heads=st.integers(1, 5), half=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_agrees_with_the_reference(tokens, heads, half, seed):
    x = np.random.default_rng(seed).standard_normal((tokens, heads, 2 * half)).astype(np.float32)
    cosine, sine = turns(tokens, half, seed)
    expected = rope_reference(x, cosine, sine)
    rope(x, cosine, sine)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_a_rotation_keeps_lengths_and_undoes_itself():
    x = np.random.default_rng(1).standard_normal((3, 2, 16)).astype(np.float32)
    cosine, sine = turns(3, 8)
    turned = x.copy()
    rope(turned, cosine, sine)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=2), np.linalg.norm(x, axis=2), rtol=1e-5)
    rope(turned, cosine, -sine)
    np.testing.assert_allclose(turned, x, rtol=1e-4, atol=1e-5)


def test_nan_reaches_its_own_pair_only():
    x = np.ones((1, 1, 8), np.float32)
    x[0, 0, 1] = np.nan
    rope(x, *turns(1, 4))
    assert np.flatnonzero(np.isnan(x[0, 0])).tolist() == [1, 5]


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 1, 6), np.float64),
        np.ones((2, 8), np.float32),
        np.ones((2, 8, 1), np.float32).transpose(0, 2, 1)[:, :, ::2],
    ],
)
def test_refuses_what_it_cannot_rotate_in_place(x):
    with pytest.raises((TypeError, ValueError)):
        rope(x, *turns(2, 4))


def test_refuses_angles_that_do_not_fit():
    x = np.ones((2, 1, 8), np.float32)
    with pytest.raises(ValueError):
        rope(x, *turns(3, 4))
    with pytest.raises(ValueError):
        rope(x, *turns(2, 3))
