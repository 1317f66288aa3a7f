"""The decoder against transformers in float32: whole prompts, prompts in chunks, one token at a time."""

import numpy as np
import pytest

import llmq.runtime.model
from llmq.runtime import load

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}

CASES = {
    "llama": ("llama", {}),
    "llama tied, bf16": ("llama", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
    "llama f16 in shards": ("llama", {"dtype": "float16", "max_shard_size": "20KB"}),
    "llama f64": ("llama", {"dtype": "float64"}),
    "llama biases, one kv head": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama without grouping, wide heads": ("llama", {"num_key_value_heads": 6, "head_dim": 14}),
    "llama odd sizes": (
        "llama",
        {
            "hidden_size": 51,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 37,
        },
    ),
    "llama linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0}),
    "llama llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 7, "dtype": "bfloat16"}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3 llama3": ("qwen3", {"head_dim": 12, "rope_parameters": LLAMA3}),
    "qwen3": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True, "dtype": "bfloat16"}),
    "qwen3 biases, windows": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES |= {
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "mixtral window, bf16": ("mixtral", {"num_local_experts": 4, "sliding_window": 7, "dtype": "bfloat16"}),
    "qwen2 moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen2 moe, some blocks": (
        "qwen2_moe",
        EXPERTS
        | {"shared_expert_intermediate_size": 40, "norm_topk_prob": True, "mlp_only_layers": [0], "qkv_bias": False},
    ),
    "qwen3 moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True, "head_dim": 12}),
    "qwen3 moe, every other block": ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 2, "attention_bias": True}),
}


def prompt(n, seed=0):
    return np.random.default_rng(seed).integers(0, 101, n)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_transformers(case, tmp_path, save_model, their_logits, monkeypatch):
    model_type, config = CASES[case]
    expected = their_logits(save_model(tmp_path, model_type, **config), prompt(40))
    model = load(tmp_path, compute="float32")
    assert expected.std() > 0.3, "logits near zero would agree with anything"
    whole = model(prompt(40))
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, atol=1e-4)

    monkeypatch.setattr(llmq.runtime.model, "CHUNK", 16)
    monkeypatch.setattr(model, "_wave", 32)
    np.testing.assert_allclose(model(prompt(40)), expected, atol=1e-4)

    cache = model.new_cache(capacity=1)
    one_by_one = [model([token], cache)[0] for token in prompt(40)]
    np.testing.assert_allclose(np.stack(one_by_one), expected, atol=1e-4)
    assert cache.tokens == prompt(40).tolist()

    cache = model.new_cache()
    model(prompt(40)[:25], cache)
    np.testing.assert_allclose(model.last_logits(prompt(40)[25:], cache), expected[-1], atol=1e-4)


def test_dynamic_rope_depends_on_the_whole_prompt(tmp_path, save_model, their_logits, monkeypatch):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    theirs = save_model(tmp_path, rope_parameters=rope, max_position_embeddings=16)
    short = their_logits(theirs, prompt(12))
    expected = their_logits(theirs, prompt(40))
    model = load(tmp_path, compute="float32")
    np.testing.assert_allclose(model(prompt(40)), expected, atol=1e-4)
    np.testing.assert_allclose(model(prompt(12)), short, atol=1e-4)
    monkeypatch.setattr(llmq.runtime.model, "CHUNK", 16)
    monkeypatch.setattr(model, "_wave", 16)
    np.testing.assert_allclose(model(prompt(40)), expected, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_greedy_generation_is_that_of_transformers(model_type, tmp_path, save_model):
    torch = pytest.importorskip("torch")
    theirs = save_model(tmp_path, model_type, eos_token_id=None, head_dim=8)
    start = prompt(9, seed=3).tolist()
    made = theirs.generate(
        torch.tensor([start]), attention_mask=torch.ones(1, 9, dtype=torch.long), max_new_tokens=30, do_sample=False
    )
    assert list(load(tmp_path, compute="float32").generate(start, max_tokens=30)) == made[0, 9:].tolist()
