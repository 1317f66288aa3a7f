import pytest

from llmq.architectures import decoder_config
from llmq.errors import InputError, UnsupportedError

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "vocab_size": 100,
    "intermediate_size": 96,
}


def test_defaults_of_the_families():
    mixtral = decoder_config(SIZES | {"model_type": "mixtral"}).experts
    assert (mixtral.count, mixtral.used, mixtral.intermediate_size, mixtral.shared_size) == (8, 2, 96, None)
    assert mixtral.normalized
    assert mixtral.module == "block_sparse_moe"
    qwen2 = decoder_config(SIZES | {"model_type": "qwen2_moe"}).experts
    assert (qwen2.count, qwen2.used, qwen2.intermediate_size, qwen2.shared_size) == (60, 4, 1408, 5632)
    assert not qwen2.normalized
    qwen3 = decoder_config(SIZES | {"model_type": "qwen3_moe"}).experts
    assert (qwen3.count, qwen3.used, qwen3.intermediate_size, qwen3.shared_size) == (128, 8, 768, None)
    assert decoder_config(SIZES | {"model_type": "llama"}).experts is None


def test_which_blocks_have_experts():
    config = SIZES | {"model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert decoder_config(config).experts.layers == (False, True, False, False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok makes no sense"),
        ({"num_experts": 10**9}, "num_experts"),
        ({"num_experts": "many"}, "num_experts"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers makes no sense"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ],
)
def test_absurd_values(changed, words):
    with pytest.raises(InputError, match=words):
        decoder_config(SIZES | {"model_type": "qwen3_moe"} | changed)


def test_what_is_refused():
    with pytest.raises(UnsupportedError, match="use_sliding_window"):
        decoder_config(SIZES | {"model_type": "qwen3_moe", "use_sliding_window": True})
    with pytest.raises(UnsupportedError, match="num_experts"):
        decoder_config(SIZES | {"model_type": "qwen3", "num_experts": 8})
