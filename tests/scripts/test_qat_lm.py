import numpy as np
import pytest
from click.testing import CliRunner

import llmq

torch = pytest.importorskip("torch")

QUICK = ("--start", "mse", "--steps", "3", "--batch", "1", "--context", "16", "--bits", "2")


@pytest.fixture
def qat(script):
    return script("qat_lm")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It is a truth universally acknowledged, that a single man must be in want of a wife. " * 4)
    return path


def test_the_sample_is_trained_written_and_judged(qat, tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- qat:begin -->\n<!-- qat:end -->\nafter\n")
    arguments = ["-o", tmp_path / "out", "--text", text, "--judge", text, "--markdown", page, *QUICK]
    done = CliRunner().invoke(qat.main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    assert "2.501 bits per quantized weight" in done.stdout
    assert "step 3/3: loss" in done.stderr
    assert llmq.load(tmp_path / "out", compute="float32")(np.array([1, 2, 3])).shape == (3, 4096)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 5
    assert rows[3].startswith("| then 3 steps of training")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


@pytest.mark.parametrize("loss", ["distillation", "cross-entropy"])
def test_training_lowers_the_loss(qat, tmp_path, write_pico, loss):
    from transformers import AutoModelForCausalLM

    path = write_pico(tmp_path / "in", seed=1)
    original = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    llmq.quantize(path, tmp_path / "start", bits=2, group_size=32, lm_head="keep")
    with qat.open_local(tmp_path / "start") as source:
        initial = dict(qat.PackedWeights(source))
    settings = qat.Settings(2, 32, "mse", 0, loss, "linears", 40, 4, 8, 2e-3, 1e-3, 0)
    trained = qat.prepare(original, initial, settings)
    losses = list(qat.train(trained, original, torch.arange(64) % 24, settings))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    norms = {n: p for n, p in trained.named_parameters() if "norm" in n}
    assert norms
    assert all(torch.equal(p, dict(original.named_parameters())[n]) for n, p in norms.items())


def test_a_text_that_is_too_short_is_an_error(qat, tmp_path, text):
    arguments = ["-o", tmp_path / "out", "--text", text, "--context", "9999", "--start", "mse"]
    done = CliRunner().invoke(qat.main, [str(a) for a in arguments])
    assert done.exit_code == 1
    assert "fewer than --context 9999" in done.output
    assert not (tmp_path / "out").exists()
