import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import llmq
from llmq.checkpoint.source import open_source
from llmq.errors import InputError
from llmq.evaluate.inventory import inventory


def read(folder):
    with open_source(folder) as source:
        return inventory(source)


def test_an_unquantized_checkpoint(sample_model):
    held = read(sample_model)
    assert held.architecture == "LlamaForCausalLM"
    assert held.format == "safetensors"
    assert held.parameters == 6_819_072
    assert held.total_bytes == 13_638_144
    assert held.bits_per_weight == 16
    assert {entry.bits for entry in held.entries} == {16}


@pytest.mark.parametrize("flags", [{"bits": 3}, {"bits": 4, "symmetric": False, "embeddings": 8}, {"group_size": -1}])
def test_a_packed_weight_counts_as_its_elements(tmp_path, write_pico, flags):
    source = write_pico(tmp_path / "in")
    report = llmq.quantize(source, tmp_path / "out", **flags)
    before, after = read(source), read(tmp_path / "out")
    assert after.format == "compressed-tensors"
    assert after.parameters == before.parameters == report.plan.parameters
    assert after.total_bytes == report.plan.output_bytes
    assert after.bits_per_weight == pytest.approx(report.plan.bits_per_weight)
    shapes = {entry.name: entry.shape for entry in before.entries}
    assert {entry.name: entry.shape for entry in after.entries} == shapes
    up = next(entry for entry in after.entries if entry.name == "model.layers.0.mlp.up_proj.weight")
    assert up.bits == flags.get("bits", 4)
    assert up.spec.group_size in (64, flags.get("group_size"))


def test_the_json_has_the_promised_keys(tmp_path, write_pico):
    described = read(write_pico(tmp_path)).to_json()
    assert set(described) == {"architecture", "parameters", "bits_per_weight", "total_bytes", "format", "tensors"}
    assert set(described["tensors"][0]) >= {"name", "dtype", "shape", "bits", "bytes"}
    json.dumps(described)


def test_a_format_of_others_is_named_and_its_parameters_are_not_guessed(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})
    )
    save_file({"a.qweight": np.zeros((4, 4), np.int32)}, tmp_path / "model.safetensors")
    held = read(tmp_path)
    assert (held.format, held.parameters, held.bits_per_weight, held.readable) == ("gptq", None, None, False)
    assert held.architecture == "llama"
    assert held.total_bytes == 64


def test_a_file_without_configuration(tmp_path):
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "model.safetensors")
    held = read(tmp_path / "model.safetensors")
    assert (held.architecture, held.parameters, held.format) == (None, 6, "safetensors")


def test_a_packed_shape_that_cannot_be_is_refused(tmp_path):
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": section}))
    tensors = {
        "a.weight_packed": np.zeros((8, 4), np.int32),
        "a.weight_scale": np.ones((8, 1), np.float32),
        "a.weight_shape": np.array([8, 1 << 40]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not fit the packed codes"):
        read(tmp_path)
