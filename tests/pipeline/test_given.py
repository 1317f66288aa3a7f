"""Checkpoints of weights that somebody else has quantized."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import llmq
from llmq.checkpoint.manifest import read_manifest
from llmq.errors import InputError, UsageError
from llmq.pipeline import write_given

NORM = "model.norm.weight"


def read(folder, name):
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return file.get_tensor(name)


def quantized(folder, **fields):
    with safe_open(folder / "model.safetensors", framework="np") as file:
        names = [n for n in file.keys() if "_proj." in n]  # noqa: SIM118
        weights = {name: file.get_tensor(name) for name in names}
    large = {name: weight for name, weight in weights.items() if weight.size >= 4096}
    return {name: llmq.quantize_tensor(weight, group_size=32, **fields) for name, weight in large.items()}


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (4, False), (1, True), (3, False)])
def test_it_writes_what_quantize_writes_of_the_same_weights(tmp_path, write_pico, bits, symmetric):
    source = write_pico(tmp_path / "in")
    llmq.quantize(source, tmp_path / "a", bits=bits, group_size=32, symmetric=symmetric, lm_head="keep")
    report = write_given(source, tmp_path / "b", quantized(source, bits=bits, symmetric=symmetric))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert report.plan.bits_per_weight_quantized > bits
    assert (tmp_path / "b/config.json").exists()
    assert not (tmp_path / "b/.llmq").exists()


def test_llmq_and_transformers_read_it(tmp_path, write_pico):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = write_pico(tmp_path / "in")
    write_given(source, tmp_path / "out", quantized(source, bits=4))
    tokens = np.array([3, 1, 4, 1, 5])
    ours = llmq.load(tmp_path / "out", compute="float32")(tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


def test_changed_tensors_are_rounded_to_the_dtype_of_the_model(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")
    changed = np.linspace(0.5, 1.5, 64, dtype=np.float32)
    write_given(source, tmp_path / "out", quantized(source), tensors={NORM: changed})
    np.testing.assert_array_equal(read(tmp_path / "out", NORM), changed.astype(ml_dtypes.bfloat16))
    assert not np.array_equal(read(tmp_path / "out", NORM), read(source, NORM))


def test_the_manifest_keeps_how_the_weights_came_about(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")
    write_given(source, tmp_path / "out", quantized(source), settings={"method": "qat", "steps": 7})
    assert read_manifest(tmp_path / "out")["settings"] == {"method": "qat", "steps": 7}
    extra = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert extra["quant_method"] == "compressed-tensors"


def test_an_output_is_replaced_only_where_that_is_asked_for(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")
    write_given(source, tmp_path / "out", quantized(source, bits=4))
    with pytest.raises(UsageError):
        write_given(source, tmp_path / "out", quantized(source, bits=2))
    write_given(source, tmp_path / "out", quantized(source, bits=2), overwrite=True)
    assert llmq.load(tmp_path / "out")(np.array([1, 2])).shape == (2, 96)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.clear(), "no quantized weights"),
        (lambda weights: weights.update({"a.weight": next(iter(weights.values()))}), "no tensor of the model"),
        (lambda weights: weights.update({NORM: next(iter(weights.values()))}), "cannot be quantized"),
        (lambda weights: weights.update({NORM: np.ones((64, 64))}), "expected QuantizedTensor, found ndarray"),
        (
            lambda weights: weights.update(
                {"model.layers.0.mlp.up_proj.weight": llmq.quantize_tensor(np.ones((4, 64)))}
            ),
            "one range and one dtype",
        ),
        (
            lambda weights: weights.update(
                {"model.layers.0.mlp.up_proj.weight": llmq.quantize_tensor(np.ones((4, 64), ml_dtypes.bfloat16))}
            ),
            "shape does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, write_pico, edit, message):
    source = write_pico(tmp_path / "in")
    weights = quantized(source)
    edit(weights)
    with pytest.raises(UsageError, match=message):
        write_given(source, tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        ("no.such.weight", np.ones(4), UsageError, "no tensor"),
        ("model.layers.0.mlp.up_proj.weight", np.ones((128, 64)), UsageError, "is quantized"),
        (NORM, np.ones(5), UsageError, "shape"),
        (NORM, np.full(64, np.nan), InputError, "64 NaN"),
        (NORM, np.full(64, 1e39), InputError, "64 infinite"),
    ],
)
def test_changed_tensors_that_do_not_fit_are_refused(tmp_path, write_pico, name, values, error, message):
    source = write_pico(tmp_path / "in")
    with pytest.raises(error, match=message):
        write_given(source, tmp_path / "out", quantized(source), tensors={name: values})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), object(), np.float32(1)])
def test_settings_that_are_no_json_are_refused_before_anything_is_written(tmp_path, write_pico, value):
    source = write_pico(tmp_path / "in")
    with pytest.raises(UsageError, match="settings must be JSON-able"):
        write_given(source, tmp_path / "out", quantized(source), settings={"steps": value})
    assert not (tmp_path / "out").exists()
