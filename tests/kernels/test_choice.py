"""Choosing tokens, against plain NumPy and the logits warpers of transformers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.choice import Rules, choose, likeliest, likeliest_reference, surviving_reference
from llmq_kernels.scratch import Scratch

rules = st.builds(
    Rules,
    temp=st.floats(0.25, 3.0),  # below, probabilities underflow, which rounding decides
    top_k=st.integers(0, 250),
    top_p=st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
)


def theirs(logits, rules):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    warpers = [process.TemperatureLogitsWarper(rules.temp)]
    if rules.top_k:
        warpers.append(process.TopKLogitsWarper(rules.top_k))
    if rules.top_p < 1.0:
        warpers.append(process.TopPLogitsWarper(rules.top_p))
    if rules.min_p > 0.0:
        warpers.append(process.MinPLogitsWarper(rules.min_p))
    scores = torch.from_numpy(logits[None].astype(np.float64))
    for warp in warpers:
        scores = warp(None, scores)
    return scores[0].softmax(-1).numpy()


def by_sorting(logits, rules, at):
    ids, weights = surviving_reference(logits, rules)
    reached = np.cumsum(weights)
    return int(ids[min(np.searchsorted(reached, at * reached[-1], side="right"), ids.size - 1)])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 200), spread=st.sampled_from([0.1, 2.0, 15.0]), rules=rules)
def test_the_same_tokens_survive_as_in_transformers(seed, size, spread, rules):
    logits = (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)
    expected = theirs(logits, rules)
    ids, weights = surviving_reference(logits, rules)
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(weights / weights.sum(), expected[ids], rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 3000),
    spread=st.sampled_from([0.0, 0.1, 2.0, 15.0]),
    rules=rules,
    special=st.sampled_from([None, math.nan, -math.inf, math.inf]),
    ties=st.booleans(),
)
def test_chooses_as_by_sorting(seed, size, spread, rules, special, ties):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * spread).astype(np.float32)
    if ties:
        logits = np.round(logits)
    if special is not None:
        logits[rng.integers(0, size, size // 3)] = special
    scratch = Scratch()
    for at in (0.0, 0.3, rng.random(), 1.0 - 2.0**-53):
        assert choose(logits, rules, at, scratch=scratch) == by_sorting(logits, rules, at)


def test_a_large_vocabulary():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal(128_000) * 3).astype(np.float32)
    for rules in (Rules(1.0, 0, 1.0, 0.0), Rules(0.7, 40, 0.9, 0.05), Rules(1.3, 0, 0.95, 0.0)):
        for at in rng.random(20):
            assert choose(logits, rules, at) == by_sorting(logits, rules, at)


def test_filters_keep_equals():
    logits = np.array([1.0, 3.0, 3.0, 3.0], np.float32)
    for rules in (Rules(1.0, 1, 1.0, 0.0), Rules(1.0, 0, 0.0, 0.0), Rules(1.0, 0, 1.0, 1.0)):
        assert [choose(logits, rules, at) for at in (0.0, 0.5, 0.99)] == [1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 3.0, 3.0, 1.0],
        [math.nan, -math.inf, 2.0],
        [-math.nan, math.inf, math.inf],
        [math.nan, -math.inf],
        [-0.0, 0.0],
        [-5.0, -3.0],
    ],
)
def test_the_likeliest(values):
    logits = np.array(values, np.float32)
    assert likeliest(logits) == likeliest_reference(logits)
    if likeliest(logits) < 0:
        assert choose(logits, Rules(1.0, 0, 1.0, 0.0), 0.5) == -1


def test_refuses_what_does_not_fit():
    with pytest.raises(TypeError):
        likeliest(np.zeros(4))
    with pytest.raises(ValueError):
        likeliest(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError):
        choose(np.zeros(4, np.float32), Rules(0.0, 0, 1.0, 0.0), 0.5)
    assert likeliest(np.zeros(0, np.float32)) == -1
