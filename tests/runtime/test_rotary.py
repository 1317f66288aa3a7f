"""Frequencies against transformers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.architectures import decoder_config
from llmq.runtime.rotary import RotaryTable, frequencies, rotation

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def theirs(config, length):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    embedding = LlamaRotaryEmbedding(transformers.LlamaConfig(**config))
    positions = torch.arange(length)[None]
    cosine, sine = embedding(torch.zeros(1), positions)
    half = cosine.shape[-1] // 2
    return embedding.inv_freq.numpy(), cosine[0, :, :half].numpy(), sine[0, :, :half].numpy()


def ours(config, length):
    parsed = decoder_config({"model_type": "llama", **config})
    cosine, sine = rotation(parsed.rope, parsed.head_dim, np.arange(length), length)
    return frequencies(parsed.rope, parsed.head_dim, length), cosine, sine


KINDS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn whole": {"factor": 4.0, "beta_fast": 16, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3},
    "yarn mscale": {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.4},
    "yarn one mscale": {"factor": 40.0, "mscale": 0.7},
    "yarn no mscale": {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0},
    "yarn ratio": {"factor": None},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("head_dim", [8, 20, 128])
def test_agrees_with_transformers(name, head_dim):
    rope = {"rope_type": name.split()[0], "rope_theta": 50000.0, **KINDS[name]}
    if rope["rope_type"] in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = 32
    config = {**SIZES, "head_dim": head_dim, "max_position_embeddings": 128, "rope_parameters": rope}
    for found, expected in zip(ours(config, 300), theirs(config, 300), strict=True):
        # One unit in the last place of a frequency, 300 times.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=5e-5)


@settings(max_examples=30, deadline=None)
@given(
    theta=st.floats(2.0, 1e7),
    factor=st.floats(1.0, 64.0),
    original=st.integers(8, 8192),
    fast=st.floats(4.0, 64.0),
    slow=st.floats(0.25, 4.0),
)
def test_yarn_anywhere(theta, factor, original, fast, slow):
    rope = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": fast, "beta_slow": slow}
    rope["original_max_position_embeddings"] = original
    config = {**SIZES, "max_position_embeddings": 2 * original, "rope_parameters": rope}
    np.testing.assert_allclose(ours(config, 1)[0], theirs(config, 1)[0], rtol=1e-5)


def test_far_positions_turn_as_in_transformers():
    config = {**SIZES, "max_position_embeddings": 131072, "rope_theta": 5e5}
    for found, expected in zip(ours(config, 100_000)[1:], theirs(config, 100_000)[1:], strict=True):
        assert np.abs(found[-100:] - expected[-100:]).max() < 1e-5


@pytest.mark.parametrize("name", ["default", "dynamic", "llama3", "yarn"])
def test_a_table_gives_the_same(name):
    rope = {"rope_type": name, "rope_theta": 50000.0, **KINDS[name]}
    if name in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = 32
    config = {**SIZES, "max_position_embeddings": 700, "rope_parameters": rope}
    parsed = decoder_config({"model_type": "llama", **config})
    table = RotaryTable(parsed.rope, 32)
    for start, count, length in [
        (0, 5, 5),
        (510, 10, 520),
        (1, 1, 2),
        (1900, 200, 2100),
        (0, 600, 900),
        (2100, 1, 2101),
    ]:
        found = table.rows(start, count, length)
        expected = rotation(parsed.rope, 32, np.arange(start, start + count), length)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
