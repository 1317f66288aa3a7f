"""Trained causal language models as packed checkpoints."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import llmq  # noqa: E402
from llmq.checkpoint.manifest import read_manifest  # noqa: E402
from llmq.checkpoint.source import open_local  # noqa: E402
from llmq.errors import InputError, UsageError  # noqa: E402
from llmq.formats.packed_weights import PackedWeights  # noqa: E402
from llmq.spec import QuantSpec  # noqa: E402
from llmq.torch import prepare_qat, quantized_tensors, save_quantized  # noqa: E402

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
KEPT = ("lm_head", "model.embed_tokens", *(f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "kv"))
"""Head and table, and weights of fewer than 4,096 elements."""


@pytest.fixture
def original(tmp_path, write_pico):
    return write_pico(tmp_path / "in", seed=3)


def trained(original, *, steps=2, **fields):
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    spec = QuantSpec(group_size=32, **({"bits": 2, "scale_dtype": "bfloat16"} | fields))
    tuned = prepare_qat(model, spec, overrides=dict.fromkeys(KEPT)).train()
    optimizer = torch.optim.Adam(tuned.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    return tuned.eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits[0].numpy()


@pytest.mark.parametrize("fields", [{"bits": 2}, {"bits": 4, "symmetric": False}, {"bits": 1}, {"bits": 8}])
def test_what_is_loaded_computes_what_was_trained(tmp_path, original, fields):
    tuned = trained(original, **fields)
    save_quantized(tuned, original, tmp_path / "out")
    found = llmq.load(tmp_path / "out", compute="float32")(TOKENS[0].numpy())
    expected = logits(tuned)
    # Norms, head and table are rounded to bfloat16, as everything that training changed.
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)


def test_packed_weights_are_those_of_training_to_the_bit(tmp_path, original):
    tuned = trained(original)
    save_quantized(tuned, original, tmp_path / "out")
    expected = quantized_tensors(tuned)
    with open_local(tmp_path / "out") as opened:
        stored = PackedWeights(opened)
        assert set(stored) == set(expected)
        for name, q in expected.items():
            np.testing.assert_array_equal(stored[name].dequantize(), q.dequantize())


def test_transformers_reads_it(tmp_path, original):
    pytest.importorskip("compressed_tensors")
    save_quantized(trained(original), original, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = llmq.load(tmp_path / "out", compute="float32")(TOKENS[0].numpy())
    np.testing.assert_allclose(logits(theirs), ours, atol=1e-4 * np.ptp(ours))


def test_what_training_left_alone_keeps_its_bytes(tmp_path, original):
    save_quantized(trained(original, steps=0), original, tmp_path / "a")
    llmq.quantize(original, tmp_path / "b", bits=2, group_size=32, lm_head="keep")
    with open_local(tmp_path / "a") as a, open_local(tmp_path / "b") as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            if "weight_" not in name:
                x, y = (bytearray(s.tensors[name].nbytes) for s in (a, b))
                a.read_into(a.tensors[name], 0, memoryview(x))
                b.read_into(b.tensors[name], 0, memoryview(y))
                assert x == y


def test_settings_go_into_the_manifest(tmp_path, original):
    save_quantized(trained(original, steps=0), original, tmp_path / "out", settings={"method": "qat", "epochs": 3})
    assert read_manifest(tmp_path / "out")["settings"] == {"method": "qat", "epochs": 3}


def test_a_model_that_was_not_prepared_is_refused(tmp_path, original):
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    with pytest.raises(UsageError):
        save_quantized(model, original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_that_made_nan_is_refused(tmp_path, original):
    tuned = trained(original, steps=0)
    with torch.no_grad():
        tuned.model.norm.weight[3] = float("nan")
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        save_quantized(tuned, original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_models_original_is_refused(tmp_path, original, write_pico):
    other = write_pico(tmp_path / "other", hidden_size=128)
    with pytest.raises(UsageError, match="shape does not fit"):
        save_quantized(trained(original, steps=0), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
