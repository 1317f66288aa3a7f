"""Against the compressed-tensors library itself."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors import ModelCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # noqa: E402
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM  # noqa: E402

from llmq.checkpoint.mapped import MappedCheckpoint  # noqa: E402
from llmq.checkpoint.source import open_source  # noqa: E402
from llmq.checkpoint.writer import CheckpointWriter, OutputTensor, lay_out  # noqa: E402
from llmq.formats.bitstream import pack_columns, unpack_columns  # noqa: E402
from llmq.formats.compressed_tensors import SUFFIXES, decode, encode, entries, quantization_config, read_schemes  # noqa: E402
from llmq.spec import QuantizedTensor, QuantSpec  # noqa: E402

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 31, 37, 64])
def test_packing(bits, columns):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (37, columns), np.uint8)
    signed = torch.from_numpy((codes.astype(np.int16) - (1 << bits >> 1)).astype(np.int8))
    np.testing.assert_array_equal(pack_columns(codes, bits), pack_to_int32(signed, bits, packed_dim=0).numpy())
    rows = pack_columns(np.ascontiguousarray(codes.T), bits).T
    np.testing.assert_array_equal(rows, pack_to_int32(signed, bits, packed_dim=1).numpy())


def test_config_is_accepted():
    specs = [QuantSpec(), QuantSpec(bits=8, group_size=-1), QuantSpec(bits=1), QuantSpec(bits=3, symmetric=False)]
    modules = {f"model.layers.{n}.p{number}": (spec, "Linear") for n in range(3) for number, spec in enumerate(specs)}
    config = QuantizationConfig.model_validate(quantization_config(modules, ["lm_head"], {"version": "0"}))
    groups = list(config.config_groups.values())
    assert [group.weights.num_bits for group in groups] == [4, 8, 2, 3]
    assert [group.weights.strategy for group in groups] == ["group", "channel", "group", "group"]
    assert {group.format for group in groups} == {"pack-quantized"}


def quantized_by_the_library(bits, symmetric, group_size):
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    strategy = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, **strategy}
    group = {"targets": ["Linear"], "format": "pack-quantized", "weights": weights}
    config = {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "quantization_status": "initialized"}
    apply_quantization_config(model, QuantizationConfig.model_validate(config))
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        groups = module.weight.detach().unflatten(1, (-1, group_size or module.weight.shape[1]))
        scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
        module.weight_scale.data.copy_(scale)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero_point)
        module.quantization_status = QuantizationStatus.FROZEN
    return model


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size"),
    [(4, True, 32), (4, False, 32), (8, True, None), (8, False, None), (3, True, 16), (3, False, 16), (2, True, 32)],
)
def test_checkpoints_of_the_library(tmp_path, bits, symmetric, group_size):
    model = quantized_by_the_library(bits, symmetric, group_size)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    compressor.decompress_model(model)
    with open_source(tmp_path) as source:
        mapped = MappedCheckpoint(source)
        schemes = read_schemes(source.config)
        packed = [name.removesuffix(".weight_packed") for name in source.tensors if name.endswith(".weight_packed")]
        assert len(packed) == 14
        for module in packed:
            names = [suffix for suffix in SUFFIXES if f"{module}.{suffix}" in source.tensors]
            q = decode({s: mapped.tensor(f"{module}.{s}") for s in names}, schemes.scheme(module), module)
            assert q.spec.symmetric is symmetric
            # The library multiplies in bfloat16: the exact product, rounded once.
            expected = model.get_submodule(module).weight.detach().float().numpy()
            np.testing.assert_array_equal(dequantized(q).astype("bfloat16").astype(np.float32), expected)


def dequantized(q: QuantizedTensor) -> np.ndarray:
    words = np.ascontiguousarray(np.ascontiguousarray(q.packed).view("<i4").T)
    codes = unpack_columns(words, q.spec.bits, q.shape[1]).T.astype(np.float32)
    zero = 1 << (q.spec.bits - 1) if q.zero_point is None else q.zero_point.repeat(q.spec.group_size, 1)
    return q.scale.astype(np.float32).repeat(q.spec.group_size, 1) * (codes - zero)


@pytest.mark.filterwarnings("default")
def test_transformers_loads_what_we_write(tmp_path):
    """Widths that differ by layer, whole rows, one bit, and a head: every weight arrives."""
    specs = [QuantSpec(3, 32), QuantSpec(4, 16), QuantSpec(8, 64), QuantSpec(2, 32), QuantSpec(5, 32), QuantSpec(6, 32)]
    torch.manual_seed(1)
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    rng = np.random.default_rng(2)
    chosen, planned, data, expected = {}, [], {}, {}
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for number, name in enumerate(linears):
        spec = specs[number % len(specs)]
        rows, columns = model.get_submodule(name).weight.shape
        if columns % spec.group_size:
            spec = QuantSpec(4, 32)
        codes = rng.integers(0, 1 << spec.bits, (columns, rows), np.uint8)
        packed = np.ascontiguousarray(pack_columns(codes, spec.bits).T).view(np.uint8)
        scale = (rng.standard_normal((rows, columns // spec.group_size)) / 50).astype("bfloat16")
        spec = spec.resolve(columns, "bfloat16")
        q = QuantizedTensor(spec, (rows, columns), packed, scale)
        chosen[name] = (spec, "Linear")
        planned += entries(name, spec, (rows, columns))
        data |= {f"{name}.{s}": a for s, a in encode(q).items()} | {f"{name}.weight_shape": np.array([rows, columns])}
        expected[f"{name}.weight"] = dequantized(q).astype("bfloat16").astype(np.float32)
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in chosen:
            planned.append(OutputTensor(name, "F32", tuple(tensor.shape)))
            data[name] = tensor.float().numpy()
            expected[name] = data[name]
    with CheckpointWriter(tmp_path / "out", lay_out(planned, 20_000), identity={}) as writer:
        for tensor in planned:
            writer.write(tensor.name, data[tensor.name])
        config = json.loads(CONFIG.to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
        config["quantization_config"] = quantization_config(chosen, [], {"version": "0"})
        writer.commit(config, {})
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded(torch.zeros((1, 3), dtype=torch.long))  # unpacks every weight
    _, info = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True)
    assert not info["missing_keys"]  # though its modules have no leading "model."
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.state_dict()[name].float().numpy(), value, err_msg=name)
