import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import llmq
from llmq.architectures import decoder_config

SMALL = {
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def make(script):
    command = script("make_checkpoint").main

    def run(*arguments):
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return run


def config(folder, **fields):
    (folder / "config.json").write_text(json.dumps(SMALL | fields))
    return folder / "config.json"


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_transformers_and_llmq_load_what_is_written(tmp_path, make, model_type):
    path = config(tmp_path, model_type=model_type, architectures=[f"{model_type.capitalize()}ForCausalLM"])
    assert make(path, tmp_path / "out", "--max-shard-size", "200K").exit_code == 0
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert np.isfinite(llmq.load(tmp_path / "out")([1, 2, 3])).all()


def test_the_bytes_depend_on_the_seed_alone(tmp_path, make):
    path = config(tmp_path, model_type="llama")
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        make(path, tmp_path / name, "--seed", seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_weights_have_heavy_tails(tmp_path, make):
    path = config(tmp_path, model_type="llama", hidden_size=512)
    make(path, tmp_path / "out", "--dtype", "float32")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        weight = file.get_tensor("model.layers.0.mlp.up_proj.weight")
    kurtosis = (weight**4).mean() / (weight**2).mean() ** 2
    assert 4 < kurtosis < 200
    assert 0.3 < weight.std() * 512**0.5 < 3


def test_presets_and_layers(tmp_path, make, script):
    module = script("make_checkpoint")
    config = decoder_config(module.adapt(module.read_config("llama-70b"), 2, "bfloat16"))
    shapes = {t.name: t.shape for t in module.tensors_of(config, "bfloat16")}
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (8192, 28672)
    assert "model.layers.2.mlp.down_proj.weight" not in shapes


def test_what_cannot_be_written_is_said_in_a_line(tmp_path, make):
    assert make("llama-3b", tmp_path / "out").exit_code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert make("llama-7b", tmp_path / "full").exit_code == 2
    assert make(config(tmp_path, model_type="mamba"), tmp_path / "out").exit_code == 4
    assert not (tmp_path / "out").exists()
