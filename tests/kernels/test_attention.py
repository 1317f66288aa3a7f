import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.attention import attention, attention_reference
from llmq_kernels.keyvalue_rows import decode_rows_reference
from llmq_kernels.keyvalues import KeyValues
from llmq_kernels.scratch import Scratch


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def held(keys, values, bits):
    """Keys and values in a cache, and what it holds of them."""
    cache = KeyValues.of(keys, values, bits)
    pairs = ((cache.keys, cache.key_scale), (cache.values, cache.value_scale))
    return cache, *(decode_rows_reference(*pair)[:, :, : keys.shape[2]] for pair in pairs)


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.one_of(st.integers(1, 5), st.integers(1, 70)),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_dim=st.sampled_from([2, 6, 16, 33, 64, 80, 128]),
    start=st.one_of(st.integers(0, 150), st.integers(500, 700)),
    bits=st.sampled_from([32, 16, 8, 4]),
    spare=st.integers(0, 5),
    window=st.one_of(st.none(), st.integers(1, 90)),
    size=st.sampled_from([0.01, 1.0, 20.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, kv_heads, group, head_dim, start, bits, spare, window, size, seed):
    rng = np.random.default_rng(seed)
    queries = random(rng, tokens, kv_heads * group, head_dim) * np.float32(size)
    keys, values = random(rng, 2, kv_heads, start + tokens + spare, head_dim)
    # Spare room is not initialised.
    keys[:, start + tokens :] = values[:, start + tokens :] = np.nan
    cache, keys, values = held(keys, values, bits)
    found = attention(queries, cache, start=start, window=window)
    expected = attention_reference(queries, keys, values, start, window)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_a_long_context_in_pieces():
    rng = np.random.default_rng(0)
    queries, cache = random(rng, 300, 6, 16), KeyValues.of(random(rng, 2, 300, 16), random(rng, 2, 300, 16))
    whole, scratch = attention(queries, cache, start=0), Scratch()
    edges = [(0, 7), (7, 200), (200, 201), (201, 204), (204, 300)]
    pieces = [attention(queries[a:b], cache, start=a, scratch=scratch) for a, b in edges]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize(("tokens", "start", "window"), [(1, 3000, None), (3, 2000, 700), (90, 10, None), (90, 50, 33)])
def test_the_number_of_threads_changes_nothing(tokens, start, window, bits, each_thread_count):
    rng = np.random.default_rng(0)
    queries, cache = random(rng, tokens, 9, 40), KeyValues.of(*random(rng, 2, 3, start + tokens, 40), bits)
    each_thread_count(lambda: [attention(queries, cache, start=start, window=window).tobytes()])


@pytest.mark.parametrize(("bits", "bound"), [(16, 0.02), (8, 0.05), (4, 0.25)])
def test_fewer_bits_cost_little(bits, bound):
    rng = np.random.default_rng(0)
    queries, (keys, values) = random(rng, 1, 8, 128), random(rng, 2, 2, 600, 128)
    exact = attention_reference(queries, keys, values, 599)
    found = attention(queries, KeyValues.of(keys, values, bits), start=599)
    assert np.linalg.norm(found - exact) < bound * np.linalg.norm(exact)


def test_a_window_of_one_sees_itself():
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 5, 2, 4), random(rng, 1, 5, 4), random(rng, 1, 5, 4)
    found = attention(queries, KeyValues.of(keys, values), start=0, window=1)
    np.testing.assert_allclose(found, values[0][:, None].repeat(2, axis=1), rtol=1e-6)


def test_huge_scores_do_not_overflow():
    queries = np.full((1, 1, 4), 1e4, np.float32)
    keys = np.array([[[1e4] * 4, [-1e4] * 4]], np.float32)
    values = np.array([[[1.0] * 4, [2.0] * 4]], np.float32)
    np.testing.assert_array_equal(attention(queries, KeyValues.of(keys, values), start=1), 1.0)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_nan_is_not_lost(bits):
    rng = np.random.default_rng(0)
    queries, keys, values = random(rng, 3, 2, 8), random(rng, 1, 40, 8), random(rng, 1, 40, 8)
    for array in (keys, values):
        spoiled = array.copy()
        spoiled[0, 20] = np.nan
        cache = KeyValues.of(*((spoiled, values) if array is keys else (keys, spoiled)), bits)
        assert np.isnan(attention(queries, cache, start=37)).all()
        assert np.isfinite(attention(queries, cache, start=37, window=10)).all()


def test_no_tokens():
    cache = KeyValues.empty((1, 4, 2), 32)
    assert attention(np.zeros((0, 2, 2), np.float32), cache, start=0).shape == (0, 2, 2)


def test_refuses_what_does_not_fit():
    queries, cache = np.zeros((2, 4, 8), np.float32), KeyValues.empty((2, 10, 8), 16)
    for wrong in (
        {"start": 9},
        {"start": -1},
        {"start": 0, "window": 0},
        {"start": 0, "out": np.zeros((2, 4, 4), np.float32)},
    ):
        with pytest.raises(ValueError):
            attention(queries, cache, **wrong)
    with pytest.raises(ValueError):
        attention(queries, KeyValues.empty((2, 10, 4), 16), start=0)
    with pytest.raises(ValueError):
        attention(queries.transpose(0, 2, 1)[:, :4].transpose(0, 2, 1), cache, start=0)
    with pytest.raises(ValueError):
        attention(np.zeros((2, 3, 8), np.float32), cache, start=0)
    with pytest.raises(TypeError):
        attention(queries.astype(np.float64), cache, start=0)
