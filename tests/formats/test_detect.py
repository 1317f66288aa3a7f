import pytest

from llmq.formats.detect import already_quantized


@pytest.mark.parametrize(
    ("config", "names", "found"),
    [
        ({}, ["model.norm.weight", "a.bias", "scales", "x.scales"], None),
        ({"quantization_config": None}, [], None),
        ({"quantization_config": {}}, [], None),
        ({"quantization_config": {"quant_method": "awq"}}, [], "awq"),
        ({"quantization_config": {"quant_method": "fp8"}}, [], "fp8"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, [], "bitsandbytes"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, [], "NVFP4"),
        ({"quantization_config": {"bits": 4}}, [], "an unnamed method"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, [], "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, [], "gptq"),
        ({"quantization": {"bits": 4, "group_size": 64}}, [], "mlx"),
        ({}, ["a.weight_packed"], "compressed-tensors"),
        ({}, ["a.qweight"], "gptq or awq"),
        ({}, ["a.weight", "a.weight_scale_inv"], "fp8"),
        ({}, ["a.weight", "a.weight_scale"], "an unnamed method with weight_scale"),
        ({}, ["a.weight", "a.scales", "a.biases"], "mlx"),
        ({}, ["a.experts.down_proj_blocks", "a.experts.down_proj_scales"], "mxfp4"),
        ({}, ["a.weight.quant_state.bitsandbytes__nf4"], "bitsandbytes"),
    ],
)
def test_what_is_recognised(config, names, found):
    assert already_quantized(config, names) == found
