import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

import llmq
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, ResourceError, UnsupportedError, UsageError
from llmq.pipeline import hidden, run_calibrated
from llmq.pipeline.block import BlockRunner, for_many, watch
from llmq.pipeline.calibration import read_calibration
from llmq.pipeline.shares import measure_shares
from llmq.runtime.linear import DenseLinear
from llmq.system.progress import NullProgress

NEEDS_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
METHODS_WITH_DATA = ["imatrix", "gptq", pytest.param("block-ap", marks=NEEDS_TORCH)]
TEXT = "it is a truth universally acknowledged " * 60


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico, add_letters):
    """A tiny model of 96 tokens with a tokenizer of letters."""
    return add_letters(write_pico(tmp_path_factory.mktemp("pico"), num_hidden_layers=3))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def weights_of(folder):
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
    manifest = json.loads((folder / "llmq.json").read_text())
    assert len(manifest["source_tensors"]) == 3 * 9 + 3
    return found | {"source": manifest["source_tensors"]}


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("method", METHODS_WITH_DATA)
def test_blocks_come_out_better_than_without_data(pico, text, tmp_path, method):
    report = llmq.quantize(pico, tmp_path / "out", bits=3, group_size=32, method=method, calibrate=text)
    assert report.state == "quantized"
    assert [block.layer for block in report.blocks] == [0, 1, 2]
    assert all(block.method in (method, "mse") for block in report.blocks)
    assert all(0 < block.error <= block.data_free_error for block in report.blocks if block.method == method)
    assert any(block.method == method for block in report.blocks)
    assert report.calibration.text == "text.txt"
    described = json.loads(json.dumps(report.to_json()))
    assert described["calibration"]["context"] == 128
    assert len(described["blocks"]) == 3
    llmq.load(tmp_path / "out")([1, 2, 3])


def test_calibrate_chooses_gptq(pico, text, tmp_path):
    report = llmq.quantize(pico, tmp_path / "out", calibrate=text, dry_run=True)
    assert report.plan.recipe.method == "gptq"


def test_statistics_are_those_of_the_activations(pico):
    model = llmq.load(pico, compute="float32")
    block, config = model.decoder.blocks[0], model.config
    tokens = np.random.default_rng(0).integers(0, 27, (4, 16))
    inputs = np.stack([model.decoder.embedding.rows(t) for t in tokens])
    runner = BlockRunner(config, 0, 16)
    found = watch(runner, for_many(block), runner.parts(inputs[:3].copy()), whole=True)
    outputs = runner.outputs(block, inputs[3:])
    normed = inputs[:3] / np.sqrt((inputs[:3].astype(np.float64) ** 2).mean(-1, keepdims=True) + config.rms_norm_eps)
    x = (normed * block.attention_norm).reshape(-1, config.hidden_size)
    assert found["q"] is found["k"] is found["v"]
    assert found["gate"] is found["up"]
    assert np.allclose(found["q"].energy, (x**2).mean(0), rtol=1e-4)
    assert np.allclose(found["q"].moments, x.T @ x / len(x), atol=1e-4)
    assert found["down"].moments.shape == (config.intermediate_size,) * 2
    whole = model.new_cache()
    assert outputs.shape == (1, 16, config.hidden_size)
    assert not np.array_equal(outputs[0], inputs[3])
    assert whole.length == 0


def test_shares_are_those_of_the_branches(pico, text):
    model = llmq.load(pico, compute="float32")
    config = model.config
    calibration = read_calibration(pico, config, text, 300)
    with open_source(pico) as source:
        found = measure_shares(source, calibration, NullProgress())
    assert len(found) == 7 * config.n_layers
    x = np.stack([model.decoder.embedding.rows(t) for t in calibration.tokens])
    block, runner = model.decoder.blocks[0], BlockRunner(config, 0, x.shape[1])
    mute = replace(block, mlp=replace(block.mlp, down=DenseLinear(np.zeros(block.mlp.down.shape, np.float32))))
    middle, after = runner.run(mute, x.copy()), runner.run(block, x.copy())
    attention, mlp = ((b - a).astype(np.float64) for a, b in ((x, middle), (middle, after)))
    expected = (attention**2).sum() / (middle.astype(np.float64) ** 2).sum()
    name = "model.layers.0.{}.weight"
    assert found[name.format("self_attn.v_proj")].share == pytest.approx(expected, rel=1e-4)
    assert found[name.format("self_attn.q_proj")].share == pytest.approx(expected / 2, rel=1e-4)
    expected = (mlp**2).sum() / (after.astype(np.float64) ** 2).sum()
    assert found[name.format("mlp.down_proj")].share == pytest.approx(expected, rel=1e-4)
    assert found[name.format("mlp.down_proj")].energy.shape == (config.intermediate_size,)


@pytest.mark.parametrize(
    ("method", "stop_at"),
    [("gptq", 0), ("gptq", 1), ("gptq", 2), pytest.param("block-ap", 1, marks=NEEDS_TORCH)],
)
def test_an_interrupted_run_goes_on_from_its_block(pico, text, tmp_path, monkeypatch, method, stop_at):
    how = {"method": method, "calibrate": text, "calibrate_tokens": 640, "bits": 2, "group_size": 32}
    whole = llmq.quantize(pico, tmp_path / "whole", **how)
    original, seen = run_calibrated._CalibratedRun.block, []

    def stopping(self, layer, tensors, progress):
        seen.append(layer)
        if layer == stop_at and len(seen) == stop_at + 1:
            raise KeyboardInterrupt
        return original(self, layer, tensors, progress)

    monkeypatch.setattr(run_calibrated._CalibratedRun, "block", stopping)
    with pytest.raises(KeyboardInterrupt):
        llmq.quantize(pico, tmp_path / "out", **how)
    llmq.quantize(pico, tmp_path / "out", **how)
    assert seen == [*range(stop_at + 1), *range(stop_at, 3)]
    assert weights_of(tmp_path / "out") == weights_of(whole.output)
    assert not (tmp_path / "out" / ".llmq").exists()


def test_an_interrupted_run_with_another_text_is_another_run(pico, text, tmp_path, monkeypatch):
    def stop(self, layer, tensors, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_calibrated._CalibratedRun, "block", stop)
        with pytest.raises(KeyboardInterrupt):
            llmq.quantize(pico, tmp_path / "out", calibrate=text)
    other = tmp_path / "other.txt"
    other.write_text(TEXT[5:])
    with pytest.raises(UsageError, match="calibration"):
        llmq.quantize(pico, tmp_path / "out", calibrate=other)


def test_hidden_states_in_a_file_change_no_byte(pico, text, tmp_path, monkeypatch):
    how = {"method": "gptq", "calibrate": text, "bits": 3, "group_size": 32}
    in_memory = llmq.quantize(pico, tmp_path / "a", **how).output
    monkeypatch.setattr(hidden, "HIDDEN_BYTES", 1000)
    assert weights_of(llmq.quantize(pico, tmp_path / "b", **how).output) == weights_of(in_memory)


@pytest.mark.parametrize("method", METHODS_WITH_DATA[1:])
def test_threads_change_no_byte(pico, text, tmp_path, method):
    how = {"calibrate": text, "calibrate_tokens": 640, "bits": 3, "group_size": 32, "method": method}
    one, two = (llmq.quantize(pico, tmp_path / f"{n}", threads=n, **how).output for n in (1, 2))
    assert weights_of(one) == weights_of(two)


def test_a_method_that_does_worse_is_not_kept(pico, text, tmp_path, monkeypatch, caplog):
    from llmq.methods import METHODS

    bad = replace(METHODS["gptq"], quantize=lambda rows, spec, found=None: METHODS["rtn"].quantize(rows, spec))
    monkeypatch.setitem(METHODS, "gptq", bad)
    report = llmq.quantize(pico, tmp_path / "out", bits=2, group_size=32, calibrate=text)
    assert {block.method for block in report.blocks} == {"mse"}
    assert "gptq leaves more error than mse" in caplog.text
    monkeypatch.undo()
    free = llmq.quantize(pico, tmp_path / "free", bits=2, group_size=32)
    assert weights_of(tmp_path / "out") == weights_of(free.output)


@NEEDS_TORCH
def test_training_leaves_less_error_than_what_it_begins_with(pico, text, tmp_path):
    """Training is judged by what the original blocks make of the text, gptq by what this one does: compare models."""
    how = {"bits": 2, "group_size": 32, "calibrate": text}
    outputs = [llmq.quantize(pico, tmp_path / m, method=m, **how).output for m in ("gptq", "block-ap")]
    # Of a single short text the last bits of a sum can decide which is better.
    texts = np.random.default_rng(5).integers(0, 27, (12, 200))
    models = [llmq.load(folder, compute="float32") for folder in (pico, *outputs)]
    original, *others = (np.array([model(tokens) for tokens in texts]) for model in models)
    begun, trained = (float(np.square(logits - original).mean()) for logits in others)
    assert trained < begun


def test_training_without_torch_is_refused_before_any_work(without_torch, pico, tmp_path):
    with pytest.raises(UsageError, match="torch, which is not installed") as caught:
        llmq.quantize(pico, tmp_path / "out", method="block-ap", dry_run=True)
    assert "numba-llmq[hf]" in caught.value.hint
    assert not (tmp_path / "out").exists()


@NEEDS_TORCH
def test_memory_of_training_is_foreseen(pico, text, tmp_path):
    how = {"bits": 2, "group_size": 32, "calibrate": text, "dry_run": True}
    trained, begun = (llmq.quantize(pico, tmp_path / m, method=m, **how).plan for m in ("block-ap", "gptq"))
    assert trained.predicted_peak_bytes > begun.predicted_peak_bytes
    with pytest.raises(ResourceError, match="too small to calibrate block-ap") as caught:
        llmq.quantize(pico, tmp_path / "out", method="block-ap", calibrate=text, max_memory=300 << 20)
    assert "gptq" in caught.value.hint


def test_nan_in_a_block_is_named(write_pico, pico, text, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    weight = np.ones((128, 64), np.float32)
    weight[3, 5] = np.nan
    broken = write_pico(tmp_path / "broken", edit={name: weight})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pico / file, broken)
    with pytest.raises(InputError, match="not finite") as caught:
        llmq.quantize(broken, tmp_path / "out", calibrate=text)
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_calibrated(pico, text, tmp_path, write_pico):
    with pytest.raises(UsageError, match="mse needs no data"):
        llmq.quantize(pico, tmp_path / "out", method="mse", calibrate=text)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 99)
    with pytest.raises(UsageError, match="too little text"):
        llmq.quantize(pico, tmp_path / "out", calibrate=tmp_path / "short.txt")
    with pytest.raises(InputError, match="not UTF-8"):
        llmq.quantize(pico, tmp_path / "out", calibrate=tmp_path / "binary.txt")
    with pytest.raises(InputError, match="no tokenizer"):
        llmq.quantize(write_pico(tmp_path / "mute"), tmp_path / "out", calibrate=text)
    with pytest.raises(ResourceError, match="too small to calibrate gptq"):
        llmq.quantize(pico, tmp_path / "out", calibrate=text, max_memory=300 << 20)
    odd = write_pico(tmp_path / "odd", model_type="gemma3_text")
    with pytest.raises(UnsupportedError, match="cannot be calibrated"):
        llmq.quantize(odd, tmp_path / "out", calibrate=text)
    assert not (tmp_path / "out").exists()


def test_a_tied_head_and_kept_linears(write_pico, pico, text, tmp_path):
    tied = write_pico(tmp_path / "tied", tie_word_embeddings=True, dtype="float32")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pico / file, tied)
    report = llmq.quantize(tied, tmp_path / "out", calibrate=text, ignore=["k_proj", r"layers\.1\."], embeddings=8)
    with open_source(report.output) as source:
        assert "model.layers.0.self_attn.k_proj.weight" in source.tensors
        assert "model.layers.1.mlp.up_proj.weight" in source.tensors
        assert "model.layers.0.self_attn.q_proj.weight_packed" in source.tensors
        assert "model.embed_tokens.weight_packed" in source.tensors
    llmq.load(report.output)([1, 2])
