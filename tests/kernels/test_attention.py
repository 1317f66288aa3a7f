import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.attention import attention, attention_reference
from llmq_kernels.jit import set_threads, threads


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 70),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([2, 6, 16, 33, 64]),
    start=st.integers(0, 150),
    spare=st.integers(0, 5),
    window=st.one_of(st.none(), st.integers(1, 90)),
    size=st.sampled_from([0.01, 1.0, 20.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, kv_heads, group, head_dim, start, spare, window, size, seed):
    rng = np.random.default_rng(seed)
    queries = random(rng, tokens, kv_heads * group, head_dim) * np.float32(size)
    keys, values = random(rng, 2, kv_heads, start + tokens + spare, head_dim)
    # Spare room is not initialised.
    keys[:, start + tokens :] = values[:, start + tokens :] = np.nan
    found = attention(queries, keys, values, start=start, window=window)
    expected = attention_reference(queries, keys, values, start, window)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_a_long_context_in_pieces():
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 300, 6, 16), random(rng, 2, 300, 16), random(rng, 2, 300, 16)
    whole = attention(queries, keys, values, start=0)
    pieces = [attention(queries[a:b], keys, values, start=a) for a, b in [(0, 7), (7, 200), (200, 201), (201, 300)]]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_nothing():
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 90, 9, 16), random(rng, 3, 100, 16), random(rng, 3, 100, 16)
    before = threads()
    whole = attention(queries, keys, values, start=10)
    try:
        set_threads(1)
        np.testing.assert_allclose(attention(queries, keys, values, start=10), whole, rtol=1e-6, atol=1e-7)
    finally:
        set_threads(before)


def test_a_window_of_one_sees_itself():
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 5, 2, 4), random(rng, 1, 5, 4), random(rng, 1, 5, 4)
    found = attention(queries, keys, values, start=0, window=1)
    np.testing.assert_allclose(found, values[0][:, None].repeat(2, axis=1), rtol=1e-6)


def test_huge_scores_do_not_overflow():
    queries = np.full((1, 1, 4), 1e4, np.float32)
    keys = np.array([[[1e4] * 4, [-1e4] * 4]], np.float32)
    values = np.array([[[1.0] * 4, [2.0] * 4]], np.float32)
    np.testing.assert_array_equal(attention(queries, keys, values, start=1), 1.0)


def test_nan_is_not_lost():
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 3, 2, 8), random(rng, 1, 40, 8), random(rng, 1, 40, 8)
    for array in (keys, values):
        spoiled = array.copy()
        spoiled[0, 20] = np.nan
        pair = (spoiled, values) if array is keys else (keys, spoiled)
        assert np.isnan(attention(queries, *pair, start=37)).all()
        assert np.isfinite(attention(queries, *pair, start=37, window=10)).all()


def test_no_tokens():
    keys = np.zeros((1, 4, 2), np.float32)
    assert attention(np.zeros((0, 2, 2), np.float32), keys, keys, start=0).shape == (0, 2, 2)


def test_refuses_what_does_not_fit():
    queries, keys = np.zeros((2, 4, 8), np.float32), np.zeros((2, 10, 8), np.float32)
    for wrong in (
        {"start": 9},
        {"start": -1},
        {"start": 0, "window": 0},
        {"start": 0, "out": np.zeros((2, 4, 4), np.float32)},
    ):
        with pytest.raises(ValueError):
            attention(queries, keys, keys, **wrong)
    with pytest.raises(ValueError):
        attention(queries, keys[:, :, :4].copy(), keys, start=0)
    with pytest.raises(ValueError):
        attention(queries, keys.transpose(1, 0, 2), keys, start=0)
    with pytest.raises(ValueError):
        attention(np.zeros((2, 3, 8), np.float32), keys, keys, start=0)
    with pytest.raises(TypeError):
        attention(queries.astype(np.float64), keys, keys, start=0)
