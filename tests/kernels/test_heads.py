import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.hadamard import hadamard_reference
from llmq_kernels.heads import HeadNorms, store_heads, store_heads_reference
from llmq_kernels.keyvalue_rows import decode_rows_reference, encode_rows_reference, padded
from llmq_kernels.keyvalues import KeyValues


def turns(tokens, half, seed=0):
    angles = np.random.default_rng(seed).uniform(-7, 7, (tokens, half)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def widened(rows, size):
    return np.pad(rows, ((0, 0), (0, 0), (0, size - rows.shape[2])))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 6),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.sampled_from([1, 3, 8, 17]),
    bits=st.sampled_from([32, 16, 8, 4]),
    normed=st.booleans(),
    position=st.integers(0, 5),
)
def test_agrees_with_the_reference(tokens, kv_heads, group, half, bits, normed, position):
    head_dim = 2 * half
    queries, keys, values = (
        random(i, tokens, n, head_dim) for i, n in enumerate((kv_heads * group, kv_heads, kv_heads))
    )
    rotation = turns(tokens, half)
    norms = HeadNorms(random(3, head_dim), random(4, head_dim), 1e-5) if normed else HeadNorms()
    cache = KeyValues.empty((kv_heads, position + tokens + 2, head_dim), bits)
    for array in cache.arrays:
        array[:] = 7
    expected = store_heads_reference(queries, keys, rotation, norms)
    store_heads((queries, keys, values), rotation, cache, position=position, norms=norms)
    np.testing.assert_allclose(queries, expected[0], rtol=2e-5, atol=1e-6)
    new = slice(position, position + tokens)
    for stored, scale, rows in (
        (cache.keys, cache.key_scale, expected[1]),
        (cache.values, cache.value_scale, values),
    ):
        found = decode_rows_reference(stored[:, new], scale[:, new]).transpose(1, 0, 2)
        if bits == 4:  # what is held is transformed: an error may lie anywhere in a row
            found, rows = hadamard_reference(found), hadamard_reference(widened(rows, found.shape[2]))
            step = np.abs(rows).max(axis=2, initial=0, keepdims=True) / 8
            step = np.where(np.abs(rows) > 7.4 * step, step, 0.501 * step)
        else:
            assert not found[:, :, head_dim:].any()
            found = found[:, :, :head_dim]
            largest = np.abs(rows).max(axis=2, initial=0, keepdims=True)
            step = {32: 1e-5, 16: 2.0**-8 * np.abs(rows), 8: largest / 253}[bits]
        assert (np.abs(found - rows) <= step + 1e-6).all()
        assert (stored[:, :position] == 7).all()
        assert (stored[:, position + tokens :] == 7).all()


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_values_are_held_as_the_reference_says(bits):
    values = random(0, 40, 2, 16) * 10.0 ** np.random.default_rng(1).integers(-3, 4, (40, 2, 1)).astype(np.float32)
    values[3] = 0.0
    values[4, 0, 5], values[5, 1, 2] = np.nan, -np.inf
    values[6] = 1e-38
    values[7, 0, :4] = [127.0, 0.5, 1.5, -2.5]  # ties
    values[8], values[9] = 4e37, 2e38  # what 4 bits hold of them is in range, and is not
    cache = KeyValues.empty((2, 40, 16), bits)
    store_heads((values.copy(), values.copy(), values), turns(40, 8), cache, position=0)
    rows = widened(values.transpose(1, 0, 2), padded(16, bits))
    with np.errstate(invalid="ignore", over="ignore"):
        stored, scale = encode_rows_reference(rows, bits)
    np.testing.assert_array_equal(cache.values, stored)
    np.testing.assert_array_equal(cache.value_scale, scale)


def test_many_tokens_take_all_threads(each_thread_count):
    rotation, norms = turns(70, 32), HeadNorms(random(3, 64), random(4, 64), 1e-5)

    def store():
        heads = random(0, 70, 70, 64), random(1, 70, 7, 64), random(2, 70, 7, 64)
        cache = KeyValues.empty((7, 70, 64), 16)
        store_heads(heads, rotation, cache, position=0, norms=norms)
        return [heads[0].tobytes(), *(array.tobytes() for array in cache.arrays)]

    each_thread_count(store)


def test_refuses_what_does_not_fit():
    cache = KeyValues.empty((2, 10, 8), 16)
    heads = tuple(np.zeros((3, n, 8), np.float32) for n in (4, 2, 2))
    for position in (-1, 8):
        with pytest.raises(ValueError, match="outside"):
            store_heads(heads, turns(3, 4), cache, position=position)
    with pytest.raises(ValueError):
        store_heads(heads, turns(3, 3), cache, position=0)
    with pytest.raises(ValueError):
        store_heads(heads, turns(2, 4), cache, position=0)
    with pytest.raises(ValueError):
        store_heads((heads[0], heads[0], heads[2]), turns(3, 4), cache, position=0)
    with pytest.raises(ValueError, match="weights"):
        store_heads(heads, turns(3, 4), cache, position=0, norms=HeadNorms(np.ones(4, np.float32)))
    with pytest.raises(ValueError, match="contiguous"):
        store_heads((heads[0].transpose(0, 2, 1).copy().transpose(0, 2, 1), *heads[1:]), turns(3, 4), cache, position=0)
    with pytest.raises(TypeError):
        store_heads((heads[0].astype(np.float64), *heads[1:]), turns(3, 4), cache, position=0)
    with pytest.raises(ValueError):
        HeadNorms(np.ones((2, 2), np.float32))
