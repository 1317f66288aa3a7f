import numpy as np
import pytest

import llmq
from llmq.runtime.cache import KVCache
from llmq.runtime.stack import Stack


@pytest.mark.parametrize("window", [None, 5])
def test_blocks_one_at_a_time_give_what_the_model_gives(tmp_path, write_pico, window):
    kind = "mistral" if window else "llama"
    model = llmq.load(write_pico(tmp_path, model_type=kind, sliding_window=window), compute="float32")
    decoder, tokens = model.decoder, np.arange(20)
    whole = decoder.hidden(tokens, model.new_cache(), tokens.size)
    x = decoder.embedding.rows(tokens)
    for layer, block in enumerate(decoder.blocks):
        stack = Stack.single(model.config, block, layer)
        cache = KVCache(stack.config, tokens.size)
        assert len(cache.layers) == 1
        x = stack.run(x, cache, tokens.size)
    assert np.array_equal(x, whole)


def test_a_stack_works_in_the_array_it_is_given(tmp_path, write_pico):
    model = llmq.load(write_pico(tmp_path), compute="float32")
    stack = Stack.single(model.config, model.decoder.blocks[0], 0)
    x = model.decoder.embedding.rows(np.arange(4))
    before = x.copy()
    assert stack.run(x, KVCache(stack.config, 4), 4) is x
    assert not np.array_equal(x, before)


def test_windows_behind_each_other_do_not_see_each_other(tmp_path, write_pico):
    model = llmq.load(write_pico(tmp_path), compute="float32")
    stack = Stack.single(model.config, model.decoder.blocks[0], 0)
    x = model.decoder.embedding.rows(np.arange(24))
    each = [stack.run(part.copy(), KVCache(stack.config, 8), 8) for part in np.split(x, 3)]
    together = stack.run(x.copy(), KVCache(stack.config, 8), 8, windows=3)
    assert np.allclose(together, np.concatenate(each), atol=1e-6)
