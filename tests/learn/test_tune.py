"""Tuning a block: less error on text kept apart, never more than it began with, whatever the threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmq.learn.block import TorchBlock  # noqa: E402
from llmq.learn.learned_rounding import Rates  # noqa: E402
from llmq.learn.tune import Settings, Windows, readings, tune_block  # noqa: E402
from llmq.methods import quantize_tensor  # noqa: E402

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 8,
}
LIVELY = Settings(epochs=15, rates=Rates(0.02, 0.002, 0.02))
"""So few windows want larger steps than a real text."""

SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}


def _weights():
    rng = np.random.default_rng(0)
    found = {f"{name}.weight": rng.standard_normal(s).astype(np.float32) * s[1] ** -0.5 for name, s in SHAPES.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return found | {f"{name}.weight": rng.uniform(0.5, 1.5, 32).astype(np.float32) for name in norms}


def _block(weights):
    return TorchBlock(CONFIG, 0, 24, weights={name: torch.tensor(weight) for name, weight in weights.items()})


def _starts(weights, bits=2):
    return {name: quantize_tensor(weight, bits, 32) for name, weight in weights.items() if weight.ndim == 2}


@pytest.fixture(scope="module")
def text():
    """What goes into the block and what comes out of it, float32 (windows, 24, 32)."""
    mixture = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    x = np.random.default_rng(2).standard_normal((10, 24, 32)).astype(np.float32) @ mixture * 0.3
    with torch.no_grad():
        return x, _block(_weights())(torch.tensor(x)).numpy()


def _windows(text):
    return Windows(lambda number: (text[0][number], text[1][number]), train=range(8), held=range(8, 10))


def _error(quantized, text, windows=slice(8, 10)):
    weights = _weights() | {name: q.dequantize() for name, q in quantized.items()}
    with torch.no_grad():
        return float(np.square(_block(weights)(torch.tensor(text[0][windows])).numpy() - text[1][windows]).sum())


def test_a_tuned_block_is_nearer_to_the_original(text):
    starts, told = _starts(_weights()), []
    tuned = tune_block(_block(_weights()), starts, _windows(text), settings=LIVELY, progress=told.append)
    assert _error(tuned, text) < 0.8 * _error(starts, text)
    assert all(tuned[name].spec == start.spec for name, start in starts.items())
    assert told == pytest.approx([n / 60 for n in range(1, 61)])


def test_what_does_not_learn_ends_as_it_began(text):
    starts = _starts(_weights())
    wild = Settings(epochs=1, rates=Rates(5.0, 0.9, 0.0))
    tuned = tune_block(_block(_weights()), starts, _windows(text), settings=wild)
    for name, start in starts.items():
        np.testing.assert_array_equal(tuned[name].packed, start.packed)
        np.testing.assert_array_equal(tuned[name].scale, start.scale)


def test_long_texts_are_read_less_often():
    assert [readings(tokens) for tokens in (500, 8192, 16384, 32768, 1_000_000)] == [10, 10, 8, 4, 4]


def test_threads_change_no_byte(text):
    few = replace(LIVELY, epochs=2, batch=3)
    one, three = (
        tune_block(_block(_weights()), _starts(_weights()), _windows(text), settings=few, threads=count)
        for count in (1, 3)
    )
    before = torch.get_num_threads()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.packed, three[name].packed)
        np.testing.assert_array_equal(tensor.scale, three[name].scale)
    assert torch.get_num_threads() == before


def test_linears_that_are_not_given_stay_as_they_are(text):
    starts = _starts(_weights())
    some = {name: start for name, start in starts.items() if "mlp" in name}
    tuned = tune_block(_block(_weights()), some, _windows(text), settings=LIVELY)
    assert tuned.keys() == some.keys()
    assert _error(tuned, text) < _error(some, text)
