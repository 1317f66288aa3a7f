"""Quantized weights read by name."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import llmq
from llmq.checkpoint.source import open_local
from llmq.errors import InputError, UnsupportedError
from llmq.formats.packed_weights import PackedWeights

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (3, False), (8, True)])
def test_they_are_what_was_written(tmp_path, write_pico, bits, symmetric):
    source = write_pico(tmp_path / "in")
    llmq.quantize(source, tmp_path / "out", bits=bits, group_size=32, symmetric=symmetric)
    with safe_open(source / "model.safetensors", framework="np") as file:
        expected = llmq.quantize_tensor(file.get_tensor(NAME), bits, 32, symmetric=symmetric)
    with open_local(tmp_path / "out") as opened:
        weights = PackedWeights(opened)
        assert NAME in weights
        assert "model.norm.weight" not in weights
        assert len(weights) == len(list(weights)) > 6
        found = weights[NAME]
    np.testing.assert_array_equal(found.dequantize(), expected.dequantize())
    assert found.spec.bits == bits


def test_an_unquantized_checkpoint_has_none(tmp_path, write_pico):
    with open_local(write_pico(tmp_path / "in")) as opened:
        assert list(PackedWeights(opened)) == []


def test_other_ways_of_quantizing_are_refused(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", quantization_config={"quant_method": "gptq", "bits": 4})
    with open_local(source) as opened, pytest.raises(UnsupportedError, match="gptq"):
        PackedWeights(opened)


def test_errors_name_the_file(tmp_path, write_pico):
    llmq.quantize(write_pico(tmp_path / "in"), tmp_path / "out", bits=4, group_size=32)
    path = tmp_path / "out/config.json"
    config = json.loads(path.read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"]["num_bits"] = 8
    path.write_text(json.dumps(config))
    with open_local(tmp_path / "out") as opened, pytest.raises(InputError, match=r"model\.safetensors"):
        _ = PackedWeights(opened)[NAME]
