import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llmq
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, UnsupportedError
from llmq.evaluate import compare as module
from llmq.evaluate.compare import compare


def run(one, other):
    with open_source(one) as source, open_source(other) as output:
        return compare(source, output)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 64)


@pytest.mark.parametrize(
    "flags", [{"bits": 4}, {"bits": 3, "symmetric": False}, {"bits": 1}, {"bits": 5, "group_size": 32}]
)
def test_against_whole_tensors(tmp_path, write_pico, small_blocks, flags):
    source = write_pico(tmp_path / "in", intermediate_size=160)
    llmq.quantize(source, tmp_path / "out", **({"group_size": 32} | flags))
    found = run(source, tmp_path / "out")
    total_error = total_squares = 0.0
    weights = load_file(source / "model.safetensors")
    for error in found.quantized:
        before = weights[error.name].astype(np.float32)
        bits = 8 if error.name == "lm_head.weight" and "symmetric" not in flags else error.bits
        spec = {"bits": flags["bits"] if "lm_head" not in error.name else bits, "group_size": 32}
        q = llmq.quantize_tensor(
            weights[error.name], **spec, symmetric=flags.get("symmetric", True), scale_dtype="bfloat16"
        )
        after = q.dequantize()
        squared_error = float(((after - before).astype(float) ** 2).sum())
        assert error.nmse == pytest.approx(squared_error / float((before.astype(float) ** 2).sum()), rel=1e-5)
        assert error.sqnr_db == pytest.approx(-10 * np.log10(error.nmse))
        assert error.max_error == pytest.approx(np.abs(after - before).max())
        both = np.linalg.norm(before.astype(float)) * np.linalg.norm(after.astype(float))
        assert error.cosine == pytest.approx(float(np.vdot(before.astype(float), after)) / both)
        # One bit is stored as the codes 1 and 3 of two, at half the scale.
        sign = q.spec.bits == 1
        codes, scales = (2 * q.codes() + 1, q.scale / 2) if sign else (q.codes(), q.scale)
        assert error.bits_per_weight == pytest.approx(q.bits_per_weight + sign, rel=0.05)
        assert error.end_codes == np.isin(codes, [0, 2**error.bits - 1]).mean()
        middle = 2 ** (error.bits - 1) if q.zero_point is None else q.zero_point[..., None].astype(np.float32)
        placed = before.reshape(*scales.shape, 32) / scales.astype(np.float32)[..., None] + middle
        assert error.saturation == ((placed < -0.5) | (placed > 2**error.bits - 0.5)).mean()
        total_error, total_squares = total_error + squared_error, total_squares + error.squares
    assert found.nmse == pytest.approx(total_error / total_squares, rel=1e-5)
    kept = [t for t in found.tensors if not t.quantized]
    assert kept
    assert all(t.unchanged and t.nmse == 0 and t.cosine == 1 for t in kept)


def test_a_copy_is_unchanged(tmp_path, write_pico):
    found = run(write_pico(tmp_path / "a"), write_pico(tmp_path / "b"))
    assert all(t.unchanged for t in found.tensors)
    assert found.quantized == ()
    assert found.nmse == 0


def test_another_dtype_is_measured(tmp_path, write_pico):
    found = run(write_pico(tmp_path / "a", dtype="float32"), write_pico(tmp_path / "b", dtype="bfloat16"))
    assert not any(t.unchanged for t in found.tensors)
    assert all(0 < t.nmse < 1e-4 for t in found.tensors)


def test_the_json_has_the_promised_keys(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")
    llmq.quantize(source, tmp_path / "out")
    described = run(source, tmp_path / "out").to_json()
    assert set(described) == {"nmse", "sqnr_db", "tensors"}
    assert set(described["tensors"][0]) >= {"name", "bits", "nmse", "sqnr_db", "cosine", "max_error"}


def test_vectors_scalars_and_empty_tensors(tmp_path):
    tensors = {"v": np.arange(5, dtype=np.float32), "s": np.array(2.0, np.float16), "e": np.zeros((0, 4), np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors | {"v": 2 * tensors["v"], "s": np.array(3.0, np.float16)}, tmp_path / "b.safetensors")
    found = {t.name: t for t in run(tmp_path / "a.safetensors", tmp_path / "b.safetensors").tensors}
    assert found["v"].nmse == 1
    assert found["v"].cosine == pytest.approx(1)
    assert found["s"].max_error == 1
    assert found["e"].unchanged


def test_integers_are_the_same_or_not(tmp_path):
    save_file({"i": np.arange(5)}, tmp_path / "a.safetensors")
    save_file({"i": np.arange(5) + 1}, tmp_path / "b.safetensors")
    (same,) = run(tmp_path / "a.safetensors", tmp_path / "a.safetensors").tensors
    (other,) = run(tmp_path / "a.safetensors", tmp_path / "b.safetensors").tensors
    assert same.unchanged
    assert not other.unchanged
    assert np.isnan(other.nmse)


def test_models_that_were_not_made_from_each_other_are_refused(tmp_path, write_pico):
    one = write_pico(tmp_path / "one")
    with pytest.raises(InputError, match=r"no such tensor \(and 8 more\)"):
        run(one, write_pico(tmp_path / "short", num_hidden_layers=1))
    with pytest.raises(InputError, match="other shape"):
        run(one, write_pico(tmp_path / "wide", vocab_size=128))


def test_formats_of_others_are_refused(tmp_path, write_pico):
    one = write_pico(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    save_file({"w": np.zeros((2, 2), ml_dtypes.bfloat16)}, tmp_path / "two" / "model.safetensors")
    with pytest.raises(UnsupportedError, match="gptq"):
        run(one, tmp_path / "two")


def test_what_rows_became_is_watched(sample_model, tmp_path):
    """Streaming while quantizing and reading afterwards show the same blocks of the same weights."""
    streamed, read = {}, {}

    def into(seen):
        def watch(name, rows, quantized):
            assert rows.shape == quantized.shape
            seen.setdefault(name, []).append((rows.astype(np.float32), quantized.dequantize()))

        return watch

    output = llmq.quantize(sample_model, tmp_path / "out", bits=3, method="rtn", watch=into(streamed)).output
    with open_source(sample_model) as source, open_source(output) as packed:
        found = compare(source, packed, watch=into(read))
    assert list(streamed) == [t.name for t in found.tensors if t.quantized]
    assert set(streamed) == set(read)
    for name, blocks in streamed.items():
        for mine, theirs in zip(zip(*blocks, strict=True), zip(*read[name], strict=True), strict=True):
            assert np.array_equal(np.concatenate(mine), np.concatenate(theirs))
