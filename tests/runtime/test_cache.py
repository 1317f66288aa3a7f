from dataclasses import replace

import numpy as np
import pytest

from llmq.architectures import decoder_config
from llmq.errors import ResourceError, UsageError
from llmq.runtime.cache import KVCache, kv_bytes
from llmq_kernels.heads import store_heads
from llmq_kernels.keyvalue_rows import decode_rows_reference

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


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_grows_and_keeps_what_it_holds(bits):
    cache, rng = KVCache(CONFIG, 2, bits), np.random.default_rng(0)
    upright = np.ones((9, 1), np.float32), np.zeros((9, 1), np.float32)
    seen = []
    for tokens in (2, 3, 1, 9):
        new = rng.standard_normal((tokens, 2, 2)).astype(np.float32)
        cache.reserve(cache.length + tokens)
        turn = tuple(x[:tokens] for x in upright)
        for layer in cache.layers:
            store_heads((new.copy(), new.copy(), -new), turn, layer, position=cache.length)
        cache.extend(range(tokens))
        seen.append(new)
    assert cache.length == 15
    expected = np.concatenate(seen).transpose(1, 0, 2)
    for layer in cache.layers:
        keys = decode_rows_reference(layer.keys, layer.key_scale)[:, :15, :2]
        values = decode_rows_reference(layer.values, layer.value_scale)[:, :15, :2]
        atol = {8: 0.02, 4: 0.4}.get(bits, 0)
        np.testing.assert_allclose(keys, expected, rtol=2.0**-8, atol=atol)
        np.testing.assert_allclose(values, -expected, rtol=2.0**-8, atol=atol)


def test_doubles_so_that_growing_stays_cheap():
    cache = KVCache(CONFIG, 4)
    cache.reserve(5)
    assert cache.capacity == 8
    cache.reserve(8)
    assert cache.capacity == 8


@pytest.mark.parametrize("head_dim", [16, 72])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_bytes(bits, head_dim):
    config = replace(CONFIG, head_dim=head_dim)
    assert KVCache(config, 5, bits).nbytes == kv_bytes(config, 5, bits)


def test_unknown_bits():
    with pytest.raises(UsageError, match="kv_bits"):
        KVCache(CONFIG, 5, 3)


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
