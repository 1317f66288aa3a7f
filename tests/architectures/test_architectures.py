"""`decoder_config` against the configuration classes of transformers, and what it refuses."""

import json
import logging

import pytest

from llmq.architectures import ARCHITECTURES, Rope, decoder_config
from llmq.errors import InputError, UnsupportedError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


def read(model_type, **config):
    return decoder_config({"model_type": model_type, **SIZES, **config})


def reference(model_type, **config):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoConfig.for_model(model_type, **{**SIZES, **config})


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_key_value_heads": None},
        {"head_dim": 24, "hidden_size": 60, "num_attention_heads": 6},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e6}},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ],
)
def test_agrees_with_transformers(model_type, config):
    ours = read(model_type, **config)
    # transformers takes a null number of key and value heads for the number of heads, but not for all.
    spelled = {k: v for k, v in config.items() if v is not None} | (
        {"num_key_value_heads": SIZES["num_attention_heads"]} if "num_key_value_heads" in config else {}
    )
    theirs = reference(model_type, **(config if model_type in ("llama", "qwen2", "qwen3") else spelled))
    assert ours.hidden_size == theirs.hidden_size
    assert ours.n_layers == theirs.num_hidden_layers
    assert ours.n_kv_heads == theirs.num_key_value_heads
    expected = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == expected
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == theirs.rope_parameters["rope_type"]
    assert ours.rope.factor == theirs.rope_parameters.get("factor", 1.0)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_transformers_saves_is_read(model_type, tmp_path):
    reference(model_type).save_pretrained(tmp_path)
    config = decoder_config(json.loads((tmp_path / "config.json").read_text()))
    assert config == read(model_type) or model_type == "mistral"


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "config",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {"use_sliding_window": True, "sliding_window": 8},
        {"use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ],
)
def test_windows_of_qwen(model_type, config):
    theirs = reference(model_type, **config)
    expected = [theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types]
    assert list(read(model_type, **config).sliding_window) == expected


def test_windows_of_mistral():
    assert read("mistral").sliding_window == (4096,) * 4
    assert read("mistral", sliding_window=None).sliding_window == (None,) * 4
    assert read("mistral", sliding_window=8).sliding_window == (8,) * 4
    with pytest.raises(UnsupportedError, match="layer_types"):
        read("mistral", sliding_window=8, layer_types=["full_attention"] * 4)


def test_biases_and_norms():
    def features(config):
        return config.attention_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert features(read("llama")) == (False, False, False, False)
    assert features(read("llama", attention_bias=True, mlp_bias=True)) == (True, True, True, False)
    assert features(read("qwen2")) == (True, False, False, False)
    assert features(read("qwen3", attention_bias=True)) == (True, True, False, True)
    assert features(read("mistral", attention_bias=True)) == (False, False, False, False)


def test_defaults_of_families():
    config = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    assert decoder_config({"model_type": "llama", **config}).n_kv_heads == 4
    wide = config | {"num_attention_heads": 32, "hidden_size": 1024}
    assert decoder_config({"model_type": "mistral", **wide}).n_kv_heads == 8
    assert decoder_config({"model_type": "qwen2", **wide}).n_kv_heads == 32
    assert decoder_config({"model_type": "qwen3", **wide}).head_dim == 128


def test_llama3_and_yarn_parameters():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = read("llama", rope_scaling={**llama3, "original_max_position_embeddings": 32}).rope
    assert (rope.kind, rope.factor, rope.original_max_position) == ("llama3", 8.0, 32)
    assert read("llama", rope_scaling=llama3).rope.original_max_position == 64
    outside = read("llama", rope_scaling=llama3, original_max_position_embeddings=16)
    assert outside.rope.original_max_position == 16
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16, "beta_fast": 0}
    rope = read("llama", rope_parameters=yarn).rope
    assert (rope.factor, rope.beta_fast) == (4.0, 32.0)


def test_rope_scaling_wins_and_defaults():
    both = {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "dynamic", "factor": 4}}
    assert read("llama", **both).rope == Rope(10000.0, "linear", 2.0)
    assert read("llama", rope_scaling=None).rope == Rope()


def test_keys_of_another_rope_type_are_reported(caplog):
    with caplog.at_level(logging.WARNING, "llmq"):
        read("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0})
    assert "beta_fast" in caplog.text


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"clip_qkv": 6.0}, "clip_qkv"),
        ({"is_causal": False}, "is_causal"),
        ({"sliding_window": 16}, "sliding_window"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(config, named):
    with pytest.raises(UnsupportedError, match=named):
        read("llama", **config)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 63, "head_dim": None}, "num_attention_heads"),
        ({"head_dim": 15}, "even head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "rope_theta": 1.0}}, "rope_theta above 1"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "low_freq_factor",
        ),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "head_dim above 2"),
    ],
)
def test_absurd_values_are_input_errors(config, named):
    with pytest.raises(InputError, match=named):
        read("llama", **config)


def test_bad_layers_of_qwen():
    with pytest.raises(InputError, match="layer_types"):
        read("qwen3", layer_types=["full_attention"])
    with pytest.raises(InputError, match="no window"):
        read("qwen3", layer_types=["sliding_attention"] * 4)
    with pytest.raises(UnsupportedError, match="linear_attention"):
        read("qwen3", layer_types=["linear_attention"] * 4)
    with pytest.raises(InputError, match="max_window_layers"):
        read("qwen2", max_window_layers="all")


def test_unknown_architectures():
    with pytest.raises(UnsupportedError, match="llama, mistral, mixtral, qwen2, qwen2_moe, qwen3"):
        read("gpt2")
    with pytest.raises(InputError, match="model_type"):
        decoder_config({})
