"""Sampling against the logits warpers of transformers."""

import math

import numpy as np
import pytest

from llmq.errors import InputError, UsageError
from llmq.runtime.sampling import Sampling, sample


def theirs(logits, sampling):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    warpers = [process.TemperatureLogitsWarper(sampling.temp)]
    if sampling.top_k:
        warpers.append(process.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(process.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0.0:
        warpers.append(process.MinPLogitsWarper(sampling.min_p))
    scores = torch.from_numpy(logits[None].astype(np.float64))
    for warp in warpers:
        scores = warp(None, scores)
    return scores[0].softmax(-1).numpy()


def test_frequencies_are_the_probabilities():
    sampling, logits = Sampling(temp=0.7, top_k=5), np.array([1.0, 0.0, 2.0, 1.5, -1.0, 0.5], np.float32)
    generator = np.random.default_rng(0)
    counts = np.bincount([sample(logits, sampling, generator) for _ in range(20_000)], minlength=6) / 20_000
    np.testing.assert_allclose(counts, theirs(logits, sampling), atol=0.015)
    assert counts[4] == 0


def test_more_than_all_tokens_are_all():
    logits = np.array([1.0, 0.0, 2.0], np.float32)
    chosen = [sample(logits, Sampling(1.0, top_k), np.random.default_rng(7)) for top_k in (0, 3, 10**30)]
    assert len(set(chosen)) == 1


def test_greedy_takes_the_first_of_equals():
    logits = np.array([0.0, 3.0, 3.0, 1.0], np.float32)
    assert sample(logits, Sampling(), Sampling().generator()) == 1


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_logits_that_are_no_numbers(temp):
    sampling = Sampling(temp, seed=0)

    def choose(values):
        return sample(np.array(values, np.float32), sampling, sampling.generator())

    assert choose([math.nan, -math.inf, 2.0]) == 2
    assert choose([math.inf, 5.0, math.nan]) == 0
    with pytest.raises(InputError, match="NaN"):
        choose([math.nan, math.nan])
    with pytest.raises(InputError, match="NaN"):
        choose([-math.inf])


def test_a_tiny_temperature_is_greedy():
    logits = np.array([1.0, 1.5, 1e30], np.float32)
    assert sample(logits, Sampling(temp=1e-300), np.random.default_rng(0)) == 2


def test_a_seed_repeats_itself():
    logits = np.zeros(1000, np.float32)
    draws = [[sample(logits, s, g) for _ in range(5)] for s in [Sampling(1.0, seed=7)] * 2 for g in [s.generator()]]
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    "values",
    [
        {"temp": -1.0},
        {"temp": math.nan},
        {"temp": math.inf},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"seed": -1},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)
