import numpy as np
import pytest

import llmq

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64}


@pytest.fixture
def weights(script):
    return script("quality_weights")


def test_what_a_quantizer_makes_can_be_evaluated(weights, write_pico, tmp_path):
    model = write_pico(tmp_path / "m", **SHAPE)
    found = weights.quantize_by(
        lambda given: {name: weights.Linear(x, 4.5 * x.size) for name, x in given.items()}, model, tmp_path / "out"
    )
    assert found["bits_per_weight_quantized"] == 4.5
    assert 4.5 < found["bits_per_weight"] < 16
    assert found["nmse"] == 0.0
    assert found["peak_anon_bytes"] > 0
    tokens = np.arange(1, 30)
    before, after = (llmq.load(path, compute="float32")(tokens) for path in (model, tmp_path / "out"))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_errors_are_those_of_the_linears(weights, write_pico, tmp_path):
    model = write_pico(tmp_path / "m", **SHAPE)
    found = weights.quantize_by(
        lambda given: {name: weights.Linear(0.5 * x, x.size) for name, x in given.items()}, model, tmp_path / "out"
    )
    assert found["nmse"] == pytest.approx(0.25)
    old, new = weights.load(model), weights.load(tmp_path / "out")
    changed = {name for name, x in new.items() if not np.array_equal(x, old[name])}
    assert changed == set(weights.linears(old))
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in changed)


def test_a_quantizer_that_leaves_a_weight_out_is_told(weights, write_pico, tmp_path):
    model = write_pico(tmp_path / "m", **SHAPE)
    with pytest.raises(ValueError, match=r"model\.layers\.0\..*: missing, or of another shape"):
        weights.quantize_by(lambda given: {}, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_heads_come_back(script):
    peers, llama = script("quality_peers"), script("peer_llama")
    weight = np.arange(24.0).reshape(12, 2)
    for heads in (1, 2, 3):
        assert np.array_equal(peers._undo(llama.interleave(weight, heads), heads), weight)
