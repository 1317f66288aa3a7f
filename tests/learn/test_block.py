"""Blocks in torch against those of the runtime, family by family."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmq.checkpoint.source import open_source  # noqa: E402
from llmq.learn.block import TorchBlock  # noqa: E402
from llmq.pipeline.block import BlockRunner, for_many, parameters_of  # noqa: E402
from llmq.runtime import load  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
FAMILIES = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama wide heads": ("llama", {"num_key_value_heads": 6, "head_dim": 14}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3 windows": (
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


def _save(folder, model_type, config):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    parsed = transformers.AutoConfig.for_model(model_type, **(SIZES | config))
    model = transformers.AutoModelForCausalLM.from_config(parsed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases begin as zeros and norms as ones, which would hide them
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.0 if name.endswith("bias") else 1.0))
    model.save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_in_torch_is_that_of_the_runtime(family, tmp_path):
    _save(tmp_path, *FAMILIES[family])
    model = load(tmp_path, compute="float32")
    x = np.random.default_rng(0).standard_normal((3, 40, SIZES["hidden_size"])).astype(np.float32)
    with open_source(tmp_path) as source:
        config = source.config
    for layer, block in enumerate(model.decoder.blocks):
        expected = BlockRunner(model.config, layer, 40).outputs(for_many(block), x)
        assert np.abs(expected - x).std() > 0.1, "a block that adds nothing would agree with anything"
        weights = {name: torch.tensor(array) for name, array in parameters_of(block).items()}
        theirs = TorchBlock(config, layer, 40, weights=weights)
        with torch.no_grad():
            np.testing.assert_allclose(theirs(torch.tensor(x)).numpy(), expected, atol=1e-4, rtol=1e-4)
        assert set(theirs.parameters) == set(weights)


def test_weights_of_another_block_are_refused(tmp_path):
    _save(tmp_path, "llama", {})
    model = load(tmp_path, compute="float32")
    with open_source(tmp_path) as source:
        config = source.config
    weights = {name: torch.tensor(array) for name, array in parameters_of(model.decoder.blocks[0]).items()}
    with pytest.raises(RuntimeError, match="q_norm"):
        TorchBlock(config | {"model_type": "qwen3"}, 0, 8, weights=weights)


def test_rotary_positions_as_older_checkpoints_spell_them(tmp_path):
    _save(tmp_path, "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}})
    block, x = load(tmp_path, compute="float32").decoder.blocks[0], torch.randn(1, 40, SIZES["hidden_size"])
    with open_source(tmp_path) as source:
        config = dict(source.config)
    older = {name: value for name, value in config.items() if name != "rope_parameters"}
    older |= {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    weights = {name: torch.tensor(array) for name, array in parameters_of(block).items()}
    with torch.no_grad():
        now, then, other = (
            TorchBlock(one, 0, 40, weights=weights)(x) for one in (config, older, older | {"rope_scaling": None})
        )
    torch.testing.assert_close(now, then)
    assert not torch.allclose(now, other)
