"""Experts, quantized: what runs is close to what was, and only the experts in use are read."""

import contextlib
import doctest

import numpy as np
import pytest

import llmq
from llmq.architectures import decoder_config
from llmq.checkpoint.source import open_source
from llmq.errors import ResourceError, UnsupportedError
from llmq.evaluate.perplexity import evaluate
from llmq.runtime import experts
from llmq.runtime.experts import choose_experts
from llmq.runtime.linear import PackedLinear
from llmq.runtime.residency import Room, experts_of, plan_residency

MEBIBYTE = 1 << 20

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "head_dim": 16,
    "initializer_range": 0.1,
}
KINDS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_models_run(tmp_path, save_model, kind):
    save_model(tmp_path / "model", kind, **SIZES | KINDS[kind])
    report = llmq.quantize(tmp_path / "model", tmp_path / "out", bits=8, group_size=32)
    packed = [tensor.name for tensor in report.plan.quantized if ".experts." in tensor.name]
    assert len(packed) == 4 * 3 * len(llmq.load(tmp_path / "model").decoder.blocks)
    kept = {tensor.name: tensor.reason for tensor in report.plan.tensors if tensor.spec is None}
    assert sum("router" in reason for reason in kept.values()) >= 2
    tokens = np.random.default_rng(0).integers(0, 101, 200)
    before, after = llmq.load(tmp_path / "model", compute="float32"), llmq.load(tmp_path / "out", compute="float32")
    assert evaluate(after, tokens, base=before, context=50).kl_mean < 0.01
    assert isinstance(after.decoder.blocks[0].linears["experts.0.gate"], PackedLinear)
    quick = llmq.load(tmp_path / "out")
    assert len(list(quick.generate([1, 2, 3], max_tokens=5, stop_tokens=()))) == 5


def test_calibration_is_refused(tmp_path, save_model):
    save_model(tmp_path / "model", "mixtral", **SIZES | KINDS["mixtral"])
    with pytest.raises(UnsupportedError, match="mixtures of experts cannot be calibrated"):
        llmq.quantize(tmp_path / "model", tmp_path / "out", method="gptq")


def test_choosing_in_examples():
    assert doctest.testmod(experts).attempted >= 2
    assert doctest.testmod(experts).failed == 0


def test_equal_experts_are_chosen_in_order_and_nan_stays():
    chosen, shares = choose_experts(np.zeros((1, 5), np.float32), 2, normalized=True)
    assert chosen.tolist() == [[0, 1]]
    assert shares.tolist() == [[0.5, 0.5]]
    _, shares = choose_experts(np.array([[np.nan, 0, 1]], np.float32), 2, normalized=False)
    assert np.isnan(shares).any()


@pytest.mark.parametrize("kind", KINDS)
def test_experts_within_a_limit(tmp_path, save_model, kind):
    wide = {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 1024,
        "head_dim": 64,
        "initializer_range": 0.05,
    }
    sizes = SIZES | KINDS[kind] | wide
    if "moe_intermediate_size" in sizes:
        sizes["moe_intermediate_size"] = 1024
    save_model(tmp_path, kind, dtype="bfloat16", **sizes)
    whole, tokens = llmq.load(tmp_path), np.random.default_rng(0).integers(0, 101, 300)
    with open_source(tmp_path) as source:
        names = experts_of(source.tensors)
        each = {sum(source.tensors[name].nbytes for name in part) for part in names.values()}
        room = Room.here(1 << 60, 300, 16)
        peak = plan_residency(source.tensors, decoder_config(source.config), room).peak_bytes
    assert len(names) == 16
    (expert,) = each
    model = llmq.load(tmp_path, max_memory=peak - 10 * expert + MEBIBYTE, context=300)
    assert 4 * expert < model.residency.expert_bytes < 7 * expert
    assert np.array_equal(model(tokens), whole(tokens))
    assert model.residency.peak_bytes <= model.residency.room.limit
    (parts,) = {use.args[0] for block in model.decoder.blocks if (use := block.mlp.used_next) is not None}
    assert 0 < parts.nbytes <= model.residency.expert_bytes
    with contextlib.suppress(ResourceError):  # a system that lets us lock
        locked = llmq.load(tmp_path, max_memory=peak - 10 * expert + MEBIBYTE, context=300, mlock=True)
        assert np.array_equal(locked(tokens), whole(tokens))
    with pytest.raises(ResourceError, match="does not run in so little memory"):
        llmq.load(tmp_path, max_memory=peak - 15 * expert, context=300)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_experts_are_taken_apart(tmp_path, save_model, kind):
    transformers = pytest.importorskip("transformers")
    save_model(tmp_path / "apart", kind, **SIZES | KINDS[kind], num_hidden_layers=3, max_shard_size="200KB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "apart")
    theirs.save_pretrained(tmp_path / "stacked", save_original_format=False)
    with open_source(tmp_path / "apart") as apart, open_source(tmp_path / "stacked") as stacked:
        shapes = [{name: info.shape for name, info in source.tensors.items()} for source in (apart, stacked)]
    assert shapes[0] == shapes[1]
    tokens = np.random.default_rng(0).integers(0, 101, 60)
    logits = [llmq.load(tmp_path / name, compute="float32")(tokens) for name in ("apart", "stacked")]
    assert np.array_equal(*logits)
    outputs = [
        llmq.quantize(tmp_path / name, tmp_path / f"{name}-4", group_size=32).output for name in ("apart", "stacked")
    ]
    packed = [llmq.load(output)(tokens) for output in outputs]
    assert np.array_equal(*packed)
