"""Checkpoints to models: packed and dense ones, and what is refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmq.checkpoint.sealed import seal
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.formats import compressed_tensors
from llmq.methods import quantize_tensor
from llmq.runtime import load
from llmq.runtime.linear import DenseLinear, PackedLinear

TOKENS = np.arange(0, 90, 3)


@pytest.fixture
def folder(tmp_path, write_pico):
    return write_pico(tmp_path / "dense", dtype="float32")


def pack(source, target, *, extra=(), tied=False, **spec):
    """Write `source` again with its block linears and the `extra` modules packed, and `source` with their values."""
    tensors = load_file(source / "model.safetensors")
    modules, packed, values = {}, {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if tied and module == "lm_head":
            continue
        packed[name] = values[name] = tensor
        if "proj" not in module and module not in extra:
            continue
        q = quantize_tensor(tensor, method="rtn", **spec)
        kind = "Embedding" if "embed" in module else "Linear"
        modules[module] = (q.spec if spec.get("group_size") != -1 else quantize_spec(**spec), kind)
        del packed[name]
        packed |= {f"{module}.{suffix}": array for suffix, array in compressed_tensors.encode(q).items()}
        packed[f"{module}.weight_shape"] = np.array(q.shape)
        values[name] = q.dequantize()
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": tied}
    quantization = compressed_tensors.quantization_config(modules, [], {})
    del quantization["llmq"]  # as another program writes it
    for folder, content, section in (
        (target, packed, quantization),
        (target.with_name("values"), values, None),
    ):
        folder.mkdir()
        save_file({n: np.ascontiguousarray(t) for n, t in content.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": section} if section else {})))
    return target, target.with_name("values")


def quantize_spec(**spec):
    from llmq.spec import QuantSpec

    return QuantSpec(**spec)


@pytest.mark.parametrize(
    ("spec", "extra", "tied"),
    [
        ({"bits": 4, "group_size": 32}, (), False),
        ({"bits": 2, "group_size": 16, "symmetric": False}, ("lm_head",), False),
        ({"bits": 8, "group_size": -1}, ("lm_head", "model.embed_tokens"), False),
        ({"bits": 4, "group_size": -1, "symmetric": False}, (), False),
        ({"bits": 3, "group_size": 32}, ("model.embed_tokens",), True),
        ({"bits": 1, "group_size": 16}, (), True),
    ],
)
def test_packed_checkpoints(tmp_path, folder, spec, extra, tied):
    packed, values = pack(folder, tmp_path / "packed", extra=extra, tied=tied, **spec)
    model, expected = load(packed, compute="float32"), load(values, compute="float32")(TOKENS)
    np.testing.assert_allclose(model(TOKENS), expected, atol=1e-4)
    assert isinstance(model.decoder.blocks[0].mlp.down, PackedLinear)
    assert isinstance(model.decoder.embedding, PackedLinear if "model.embed_tokens" in extra else DenseLinear)
    assert (model.decoder.head is model.decoder.embedding) == tied
    if spec["bits"] >= 4:
        fast = load(packed)(TOKENS)
        assert np.abs(fast - expected).max() < 0.1 * np.abs(expected).max()


def test_bits_per_weight_counts_every_byte(tmp_path, folder):
    assert load(folder).bits_per_weight == 32.0
    packed, _ = pack(folder, tmp_path / "packed", bits=4, group_size=32)
    total = sum(tensor.nbytes for tensor in load_file(packed / "model.safetensors").values())
    parameters = sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
    assert load(packed).bits_per_weight == pytest.approx(8 * total / parameters)


def test_a_tied_head_may_be_stored_or_not(tmp_path, write_pico):
    stored = write_pico(tmp_path / "stored", dtype="float32")
    config = json.loads((stored / "config.json").read_text()) | {"tie_word_embeddings": True}
    (stored / "config.json").write_text(json.dumps(config))
    model = load(stored)
    head = load_file(stored / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(model.decoder.head.rows(np.arange(3)), head[:3])
    only_head = tmp_path / "only head"
    only_head.mkdir()
    (only_head / "config.json").write_text(json.dumps(config))
    tensors = load_file(stored / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, only_head / "model.safetensors")
    model = load(only_head)
    np.testing.assert_array_equal(model.decoder.embedding.rows(np.arange(3)), head[:3])


def test_nothing_is_copied(folder):
    weight = load(folder).decoder.blocks[0].mlp.gate.weight
    assert not weight.flags.owndata
    assert not weight.flags.writeable


def test_neither_torch_nor_transformers_is_imported(folder):
    code = (
        f"import sys; from llmq.runtime import load; model = load({str(folder)!r}); model([1, 2])\n"
        "assert list(model.generate([1, 2], max_tokens=2, stop_tokens=()))\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, r"layers\.1\.mlp\.up_proj\.weight: missing"),
        ({"lm_head.weight": None}, r"lm_head\.weight: missing"),
        (
            {"model.norm.weight": np.ones(63)},
            r"model\.safetensors: model\.norm\.weight: .*expected \[64\], found \[63\]",
        ),
        ({"model.layers.0.self_attn.k_proj.weight": np.ones((64, 64))}, r"expected \[32, 64\], found \[64, 64\]"),
        ({"model.layers.0.self_attn.q_proj.bias": np.ones(64)}, r"q_proj\.bias: this architecture has no such"),
        ({"model.layers.2.x": np.ones(2), "model.layers.2.y": np.ones(2)}, r"no such tensor \(and 1 more\)"),
        ({"model.layers.0.mlp.up_proj.weight_packed": np.ones(2)}, "both packed and dense"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, write_pico, edit, message):
    folder = write_pico(tmp_path, dtype="float32", edit=edit)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_frequencies_of_old_checkpoints_are_ignored(tmp_path, write_pico):
    edit = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}
    assert load(write_pico(tmp_path, dtype="float32", edit=edit))([1]).shape == (1, 96)


def test_integer_weights_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight: dtype I8"):
        load(folder)


def test_packed_tensors_that_do_not_fit(tmp_path, folder):
    packed, _ = pack(folder, tmp_path / "packed", bits=4, group_size=32)
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(InputError, match=r"gate_proj.*expected \[96, 64\], found \[128, 64\]"):
        load(packed)
    (packed / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization_config"}))
    with pytest.raises(InputError, match="no quantization_config"):
        load(packed)


def test_what_a_format_refuses_is_named_with_its_file(tmp_path, folder):
    packed, _ = pack(folder, tmp_path / "packed", bits=4, group_size=32)
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    wrong = {f"{name}.weight_scale": np.ones((3, 2), np.float32)}
    order = {f"{name}.weight_g_idx": np.arange(64, dtype=np.int32) % 2}
    for edit, kind, what in (
        (wrong, InputError, r"\.weight_scale: shape does not fit"),
        (order, UnsupportedError, r"\.weight_g_idx: columns in activation order"),
    ):
        save_file(tensors | edit, packed / "model.safetensors")
        with pytest.raises(kind, match=rf"^model\.safetensors: {re.escape(name)}{what}") as caught:
            load(packed)
    assert "original checkpoint" in caught.value.hint
    save_file(tensors, packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["config_groups"] = {}
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"^model\.safetensors: .*no group of quantization_config targets it"):
        load(packed)


def test_an_output_without_its_manifest_is_no_model(tmp_path, folder):
    import llmq

    llmq.quantize(folder, tmp_path / "out")
    assert load(tmp_path / "out")(TOKENS).shape == (30, 96)
    (tmp_path / "out" / "llmq.json").unlink()
    with pytest.raises(InputError, match=r"written by llmq, but llmq\.json is missing") as caught:
        load(tmp_path / "out")
    assert "copy the finished folder whole" in caught.value.hint
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["quantization_config"]["llmq"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert load(tmp_path / "out")(TOKENS).shape == (30, 96)


def test_other_quantizations_are_refused_by_name(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedError, match="gptq"):
        load(folder)


def test_unfinished_and_damaged_outputs(folder):
    (folder / ".llmq").mkdir()
    with pytest.raises(InputError, match="unfinished"):
        load(folder)
    (folder / ".llmq").rmdir()
    files = {"model.safetensors": {"size": 1, "sha256": "0" * 64}}
    (folder / "llmq.json").write_bytes(seal({"schema": 1, "files": files, "tensors": {}}))
    with pytest.raises(InputError, match="not as llmq wrote it"):
        load(folder)


def test_what_is_no_model(tmp_path, folder):
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="compute"):
        load(folder, compute="int4")
    with pytest.raises(InputError, match="model_type"):
        load(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UnsupportedError, match="mamba"):
        load(folder)
