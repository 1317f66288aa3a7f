"""transformers with compressed-tensors reads what we write, and we read what compressed-tensors writes."""

import json
import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import llmq

TOKENS = np.arange(3, 60) % 96


def theirs(folder, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
        with torch.no_grad():
            return model.eval()(torch.from_numpy(TOKENS)[None]).logits[0].numpy()


def assert_agree(ours, reference, tolerance=1e-3):
    assert np.abs(ours - reference).max() <= tolerance * np.ptp(reference)


@pytest.mark.parametrize("bits", range(1, 9))
def test_transformers_reads_every_width(tmp_path, write_pico, bits):
    llmq.quantize(write_pico(tmp_path / "in"), tmp_path / "out", bits=bits, lm_head="keep")
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), theirs(tmp_path / "out"))


@pytest.mark.parametrize("flags", [
    {},  # an 8-bit head beside 4-bit linears
    {"overrides": ["layers\\.1\\..*down_proj=bits:8,group:32", "o_proj=bits:3"]},
    {"ignore": ["layers\\.0\\."], "lm_head": 4},
    {"group_size": -1, "method": "rtn"},
    {"range": "narrow", "method": "rtn"},
    {"target": "transformers"},
])  # fmt: skip
def test_transformers_reads_mixed_checkpoints(tmp_path, write_pico, flags):
    llmq.quantize(write_pico(tmp_path / "in"), tmp_path / "out", **flags)
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), theirs(tmp_path / "out"))


def test_transformers_reads_a_tied_checkpoint(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", tie_word_embeddings=True)
    llmq.quantize(source, tmp_path / "out")
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), theirs(tmp_path / "out"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_transformers_reads_asymmetric_ones_when_told_to_dequantize(tmp_path, write_pico, bits):
    # In bf16 its products of code and scale are rounded to bf16, which ours are not.
    llmq.quantize(write_pico(tmp_path / "in", dtype="float16"), tmp_path / "out", bits=bits, symmetric=False)
    reference = theirs(tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True))
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), reference, 2e-3)


@pytest.mark.parametrize(
    "weights",
    [
        {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 32},
        {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32},
        {"num_bits": 8, "symmetric": True, "strategy": "channel"},
        {"num_bits": 3, "symmetric": False, "strategy": "channel"},
    ],
)
def test_we_read_what_compressed_tensors_writes(tmp_path, weights):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    scheme = QuantizationConfig.model_validate({
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", **weights}}},
        "format": "pack-quantized", "ignore": ["lm_head"], "quantization_status": "frozen",
    })  # fmt: skip
    apply_quantization_config(model, scheme)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            _calibrate(module, weights)
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "out")
    compressor.update_config(tmp_path / "out")
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), reference)


def _calibrate(module, weights):
    grouped = module.weight.detach().reshape(module.weight.shape[0], module.weight_scale.shape[1], -1)
    steps = 2 ** weights["num_bits"] - 1
    if weights["symmetric"]:
        module.weight_scale.data = grouped.abs().amax(-1) * 2 / steps
        return
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    module.weight_scale.data = (high - low) / steps
    offset = torch.round(-low / module.weight_scale.data) - 2 ** (weights["num_bits"] - 1)
    module.weight_zero_point.data = offset.to(module.weight_zero_point.dtype)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_embedding_table_is_what_compressed_tensors_decodes(tmp_path, write_pico, bits, tied):
    """transformers cannot load one (it initializes an Embedding by its `weight`), so its bytes are decoded instead."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    source = write_pico(tmp_path / "in", tie_word_embeddings=tied)
    llmq.quantize(source, tmp_path / "out", embeddings=bits, lm_head="keep")
    config = QuantizationConfig.model_validate(_section(tmp_path / "out"))
    (scheme,) = [g for g in config.config_groups.values() if g.targets == ["model.embed_tokens"]]
    prefix = "model.embed_tokens."
    stored = {n.removeprefix(prefix): t for n, t in load_file(tmp_path / "out" / "model.safetensors").items()}
    state = {n: t.float() if n == "weight_scale" else t for n, t in stored.items() if n.startswith("weight_")}
    table = BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]
    llmq.quantize(source, tmp_path / "rest", lm_head="keep")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = AutoModelForCausalLM.from_pretrained(tmp_path / "rest", dtype=torch.float32).eval()
    with torch.no_grad():
        reference(torch.from_numpy(TOKENS)[None])  # decompresses
        reference.model.embed_tokens.weight.copy_(table)
        logits = reference(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    assert_agree(llmq.load(tmp_path / "out", compute="float32")(TOKENS), logits)


def _section(folder):
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    return {key: value for key, value in section.items() if key != "llmq"}
