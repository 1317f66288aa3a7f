import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import llmq
from llmq.errors import InputError, ResourceError, UsageError
from llmq.evaluate.divergence import divergence, log_softmax
from llmq.evaluate.memory import states_budget
from llmq.evaluate.perplexity import evaluate, tokenize
from llmq.plan.budget import PROCESS_BYTES


class Table:
    """A model whose logits depend on the last token alone."""

    context = 100
    compute = "float32"
    kv_bits = 32

    def __init__(self, logits):
        self.logits = np.asarray(logits, np.float32)
        self.config = SimpleNamespace(vocab_size=self.logits.shape[1], hidden_size=1)
        self.decoder = SimpleNamespace(
            blocks=(),
            embedding=SimpleNamespace(rows=lambda ids: ids[:, None].astype(np.float32)),
            logits=lambda x: self.logits[x[:, 0].astype(int)],
        )

    def release(self):
        pass


def random_table(seed, vocab=40):
    return Table(2 * np.random.default_rng(seed).standard_normal((vocab, vocab)))


def reference(table, windows):
    losses = []
    for window in windows:
        for before, after in pairwise(window):
            row = table.logits[before].astype(float)
            losses.append(np.log(np.exp(row).sum()) - row[after])
    return np.array(losses)


def test_against_a_plain_loop():
    tokens = np.random.default_rng(3).integers(0, 40, 107)
    model = random_table(0)
    losses = reference(model, [tokens[i : i + 10] for i in range(0, 107, 10)])
    found = evaluate(model, tokens, context=10)
    assert found.tokens == losses.size == 10 * 9 + 6
    assert found.context == 10
    assert found.perplexity == pytest.approx(np.exp(losses.mean()))
    assert found.perplexity_se == pytest.approx(found.perplexity * losses.std(ddof=1) / np.sqrt(losses.size))
    assert found.kl_mean is None
    assert "windows of 10 tokens" in found.protocol


def test_a_last_window_of_one_token_is_left_out():
    tokens = np.random.default_rng(3).integers(0, 40, 21)
    assert evaluate(random_table(0), tokens, context=10).tokens == 18


def test_divergence_from_the_base():
    tokens = np.random.default_rng(4).integers(0, 40, 64)
    model, base = random_table(0), random_table(1)
    found = evaluate(model, tokens, context=16, base=base)
    read = np.concatenate([tokens[i : i + 15] for i in range(0, 64, 16)])
    p, q = (np.exp(t.logits[read].astype(float)) for t in (base, model))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    assert found.kl_mean == pytest.approx(kl.mean())
    assert found.kl_median == pytest.approx(np.median(kl))
    assert found.kl_p99 == pytest.approx(np.percentile(kl, 99))
    assert found.kl_max == pytest.approx(kl.max())
    assert found.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())


def test_a_model_does_not_diverge_from_itself():
    found = evaluate(random_table(0), np.arange(40), base=random_table(0))
    assert (found.kl_mean, found.kl_max, found.top1_agreement) == (0.0, 0.0, 1.0)


def test_max_tokens_takes_the_beginning():
    tokens = np.random.default_rng(3).integers(0, 40, 90)
    assert evaluate(random_table(0), tokens, context=16, max_tokens=40) == evaluate(
        random_table(0), tokens[:40], context=16
    )


def test_pieces_of_a_window_give_what_the_whole_gives(write_pico, tmp_path, monkeypatch):
    model = llmq.load(write_pico(tmp_path))
    tokens = np.random.default_rng(0).integers(2, 96, 100)
    whole = evaluate(model, tokens, context=60)
    monkeypatch.setattr("llmq.evaluate.memory._LOGIT_BYTES", 1)
    assert evaluate(model, tokens, context=60).perplexity == pytest.approx(whole.perplexity, rel=1e-6)


def test_against_transformers(write_pico, tmp_path):
    folder = write_pico(tmp_path, dtype="float32")
    tokens = np.random.default_rng(0).integers(2, 96, 70)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for start in (0, 32, 64):
        window = torch.tensor(tokens[None, start : start + 32])
        with torch.no_grad():
            loss = model(window, labels=window).loss
        total, count = total + float(loss) * (window.shape[1] - 1), count + window.shape[1] - 1
    found = evaluate(llmq.load(folder, compute="float32"), tokens, context=32)
    assert found.tokens == count
    assert found.perplexity == pytest.approx(np.exp(total / count), rel=1e-4)


def test_the_sample_is_as_good_as_its_card_says(sample_model):
    model = llmq.load(sample_model)
    tokens = tokenize(model.tokenizer, (sample_model / "heldout.txt").read_text(encoding="utf-8"))
    found = evaluate(model, tokens, max_tokens=2048)
    assert 25 < found.perplexity < 50


def test_progress_is_told_every_token():
    told = []
    progress = SimpleNamespace(
        start=lambda title, total, unit="bytes": told.append((total, unit)), advance=told.append, finish=lambda: None
    )
    evaluate(random_table(0), np.arange(25), context=10, progress=progress)
    assert told == [(25, "tokens"), 25]


def test_progress_goes_on_at_every_block(write_pico, tmp_path):
    told = []
    progress = SimpleNamespace(start=lambda *_: None, advance=told.append, finish=lambda: None)
    evaluate(llmq.load(write_pico(tmp_path)), np.arange(2, 62), context=30, progress=progress)
    assert told == [10, 10, 10, 10, 20]  # two windows through two blocks, then the head


FORMS = {
    "float32": ({}, {"compute": "float32"}),
    "int8": ({}, {"compute": "int8"}),
    "int8 cache": ({}, {"compute": "int8", "kv_bits": 8}),
    "4-bit cache": ({}, {"compute": "int8", "kv_bits": 4}),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
        {"compute": "float32"},
    ),
    "windows": ({"sliding_window": 9, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}, {}),
}


@pytest.fixture(params=FORMS)
def pair(request, write_pico, tmp_path):
    """A quantized model and the one it was made from."""
    config, load = FORMS[request.param]
    source = write_pico(tmp_path / "in", max_position_embeddings=32, **config)
    llmq.quantize(source, tmp_path / "out", bits=4, group_size=32)
    return llmq.load(tmp_path / "out", **load), llmq.load(source, compute="float32")


@pytest.mark.parametrize("in_file", [False, True])
def test_block_by_block_is_as_good_as_window_by_window(pair, in_file, monkeypatch):
    model, base = pair
    if in_file:
        monkeypatch.setattr("llmq.evaluate.memory.HIDDEN_BYTES", 0)
    tokens = np.random.default_rng(0).integers(2, 96, 150)
    found = evaluate(model, tokens, context=60, base=base)
    losses, kl = [], []
    for window in (tokens[:60], tokens[60:120], tokens[120:]):
        log_p, log_base = log_softmax(model(window[:-1])), log_softmax(base(window[:-1]))
        losses.append(-log_p[np.arange(window.size - 1), window[1:]])
        kl.append(divergence(log_base, log_p))
    assert found.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-6)
    assert found.kl_mean == pytest.approx(np.concatenate(kl).mean(), rel=1e-5)
    assert found.kl_max == pytest.approx(np.concatenate(kl).max(), rel=1e-5)


def test_a_memory_limit_is_met_or_refused(write_pico, tmp_path):
    model = llmq.load(write_pico(tmp_path))
    tokens = np.arange(2, 90)
    with pytest.raises(ResourceError, match="too small to evaluate") as error:
        evaluate(model, tokens, base=model, max_memory=1 << 20)
    least = int(re.search(r"expected (\d+) MiB", str(error.value))[1]) << 20
    assert PROCESS_BYTES < least < 2 * PROCESS_BYTES
    assert evaluate(model, tokens, base=model, max_memory=least).kl_mean == 0
    assert states_budget([model, model], 512, least + (64 << 20)) == pytest.approx(32 << 20, abs=1 << 20)


def test_bad_input():
    model = random_table(0)
    with pytest.raises(UsageError, match="context"):
        evaluate(model, [1, 2, 3], context=1)
    with pytest.raises(UsageError, match="too short"):
        evaluate(model, [1])
    with pytest.raises(UsageError, match="another vocabulary"):
        evaluate(model, [1, 2, 3], base=random_table(0, vocab=41))
    with pytest.raises(InputError, match="NaN"):
        evaluate(Table(np.full((4, 4), np.nan)), [1, 2, 3])
    with pytest.raises(InputError, match="no such token"):
        evaluate(model, [1, 2, 40])
    with pytest.raises(UsageError, match="list of integers"):
        evaluate(model, [1.5, 2.5])
