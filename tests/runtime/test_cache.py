import numpy as np
import pytest

from llmq.architectures import decoder_config
from llmq.errors import ResourceError
from llmq.runtime.cache import KVCache

CONFIG = decoder_config(
    {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8,
    }
)


def test_grows_and_keeps_what_it_holds():
    cache, rng = KVCache(CONFIG, 2), np.random.default_rng(0)
    seen = []
    for tokens in (2, 3, 1, 9):
        new = rng.standard_normal((tokens, 2, 2)).astype(np.float32)
        cache.reserve(cache.length + tokens)
        for layer in range(2):
            keys, values = cache.store(layer, new + layer, -new)
        cache.extend(range(tokens))
        seen.append(new)
    assert cache.length == 15
    assert keys.shape == values.shape == (2, cache.capacity, 2)
    np.testing.assert_array_equal(keys[:, :15], np.concatenate(seen).transpose(1, 0, 2) + 1)
    np.testing.assert_array_equal(values[:, :15], -np.concatenate(seen).transpose(1, 0, 2))


def test_doubles_so_that_growing_stays_cheap():
    cache = KVCache(CONFIG, 4)
    cache.reserve(5)
    assert cache.capacity == 8
    cache.reserve(8)
    assert cache.capacity == 8
    assert cache.nbytes == 2 * 2 * 2 * 8 * 2 * 4


def test_truncate_forgets():
    cache = KVCache(CONFIG, 4)
    cache.extend([5, 6, 7])
    cache.truncate(1)
    assert (cache.tokens, cache.length) == ([5], 1)


@pytest.mark.parametrize("capacity", [2**50, 2**62])
def test_no_memory(capacity):
    with pytest.raises(ResourceError, match="cache"):
        KVCache(CONFIG, capacity)


@pytest.mark.parametrize("length", [-1, 1])
def test_a_cache_is_cut_only_to_what_it_holds(length):
    with pytest.raises(ValueError, match="0 to 0"):
        KVCache(CONFIG, 2).truncate(length)
