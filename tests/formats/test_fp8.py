"""Checkpoints of 8-bit floats, in the spellings of their makers, beside what torch says that they stand for."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import llmq
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, UnsupportedError
from llmq.formats.fp8 import dequantized

BLOCK = 128
LARGEST = 448.0


def blocks(weight):
    """Scales of blocks of 128 by 128, and the same for every element."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            scale[i, j] = weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK].abs().max() / LARGEST
    wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return scale, wide[: weight.shape[0], : weight.shape[1]]


def per_row(weight):
    scale = weight.abs().amax(1, keepdim=True) / LARGEST
    return scale, scale.expand_as(weight)


def per_tensor(weight):
    scale = weight.abs().max() / LARGEST
    return scale, scale.expand_as(weight)


SPELLINGS = {
    "deepseek": ("weight_scale_inv", blocks, torch.float32, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "qwen": ("weight_scale_inv", blocks, torch.bfloat16, {"quant_method": "fp8"}),
    "compressed-tensors": ("weight_scale", per_row, torch.bfloat16, {"quant_method": "compressed-tensors"}),
    "quark": ("weight_scale", per_tensor, torch.float32, {"quant_method": "quark"}),
    "comfy": ("scale_weight", per_tensor, torch.float32, None),
}


@pytest.fixture
def original(tmp_path, write_pico):
    return write_pico(tmp_path / "original", hidden_size=192, intermediate_size=320)


def encode(source, target, spelling):
    """Write a model with linears in 8-bit floats, and beside it what torch makes of them."""
    ending, scales, dtype, section = SPELLINGS[spelling]
    tensors = load_file(source / "model.safetensors")
    coded, plain = {}, dict(tensors)
    for name, weight in tensors.items():
        if "_proj.weight" not in name:
            coded[name] = weight
            continue
        scale, wide = scales(weight.float())
        scale, wide = scale.to(dtype), wide.to(dtype).float()
        coded[name] = (weight.float() / wide).to(torch.float8_e4m3fn)
        coded[name.removesuffix("weight") + ending] = scale.contiguous()
        coded[name.removesuffix("weight") + "input_scale"] = torch.ones(1)
        plain[name] = (coded[name].float() * wide).to(torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    for folder, weights, more in (
        ("coded", coded, {"quantization_config": section} if section else {}),
        ("plain", plain, {}),
    ):
        (target / folder).mkdir(parents=True)
        save_file(weights, target / folder / "model.safetensors", {"format": "pt"})
        (target / folder / "config.json").write_text(json.dumps(config | more))
    return target / "coded", target / "plain"


def weights_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_quantizes_as_what_torch_makes_of_it(tmp_path, original, spelling):
    coded, plain = encode(original, tmp_path, spelling)
    report = llmq.quantize(coded, tmp_path / "of coded", bits=4, group_size=32)
    llmq.quantize(plain, tmp_path / "of plain", bits=4, group_size=32)
    assert weights_of(tmp_path / "of coded") == weights_of(tmp_path / "of plain")
    assert not any("scale" in tensor.name for tensor in report.plan.tensors)
    model = llmq.load(tmp_path / "of coded")
    assert np.isfinite(model([1, 2, 3])).all()


def test_any_range_of_bytes(tmp_path, original):
    coded, plain = encode(original, tmp_path, "deepseek")
    name = "model.layers.0.mlp.gate_proj.weight"
    with open_source(coded) as opened, open_source(plain) as expected:
        source = dequantized(opened)
        info = source.tensors[name]
        assert (info.dtype, info.nbytes) == ("BF16", expected.tensors[name].nbytes)
        whole = bytearray(info.nbytes)
        expected.read_into(expected.tensors[name], 0, memoryview(whole))
        draw = np.random.default_rng(0)
        for _ in range(20):
            start, stop = (2 * np.sort(draw.integers(0, info.nbytes // 2, 2))).tolist()
            part = bytearray(stop - start)
            source.read_into(info, start, memoryview(part))
            assert part == whole[start:stop]
        with pytest.raises(ValueError, match="of a tensor of"):
            source.read_into(info, info.nbytes - 2, memoryview(bytearray(4)))


def test_the_same_bytes_within_any_memory(tmp_path, original):
    coded, _ = encode(original, tmp_path, "compressed-tensors")
    for memory in (256 << 20, 2 << 30):
        llmq.quantize(coded, tmp_path / str(memory), max_memory=memory)
    assert weights_of(tmp_path / str(256 << 20)) == weights_of(tmp_path / str(2 << 30))


def test_without_a_scale_nothing_can_be_told(tmp_path, original):
    coded, _ = encode(original, tmp_path, "quark")
    tensors = load_file(coded / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight_scale"
    save_file({k: v for k, v in tensors.items() if k != name}, coded / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match="without a scale that llmq knows") as raised:
        llmq.quantize(coded, tmp_path / "out")
    assert "model.layers.1.self_attn.k_proj.weight" in str(raised.value)
    save_file(tensors | {name: torch.ones(3)}, coded / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="does not fit its weight"):
        llmq.quantize(coded, tmp_path / "out")
    save_file(tensors | {name: torch.ones(1, dtype=torch.int32)}, coded / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedError, match="a scale of I32"):
        llmq.quantize(coded, tmp_path / "out")


def test_nan_is_named(tmp_path, original):
    coded, _ = encode(original, tmp_path, "quark")
    tensors = load_file(coded / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name].view(torch.uint8)[0, 0] = 0x7F
    save_file(tensors, coded / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        llmq.quantize(coded, tmp_path / "out")
