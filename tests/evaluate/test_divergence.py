import doctest

import numpy as np
import pytest

from llmq.evaluate import divergence as module
from llmq.evaluate.divergence import agreement, divergence, log_softmax


def test_the_examples_are_right():
    assert doctest.testmod(module).failed == 0


def test_log_softmax_of_large_logits_loses_nothing():
    logits = np.array([[1e4, 1e4 + 1, -1e4], [0, -np.inf, 0]], np.float32)
    expected = [[-1.3132617, -0.3132617, -20001.3132617], [-np.log(2), -np.inf, -np.log(2)]]
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-7)


def test_divergence_against_its_definition():
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(50), size=20) for _ in range(2))
    expected = [sum(a * np.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(divergence(np.log(p), np.log(q)), expected, rtol=1e-10)


def test_divergence_of_a_distribution_from_itself_is_zero_and_never_negative():
    log_p = log_softmax(np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32))
    assert (divergence(log_p, log_p) == 0).all()
    assert (divergence(log_p, log_p + 1e-12) >= 0).all()


@pytest.mark.parametrize(("p", "q", "nats"), [([1, 0], [0.5, 0.5], np.log(2)), ([0.5, 0.5], [1, 0], np.inf)])
def test_impossible_tokens(p, q, nats):
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log([p]), np.log([q])
    np.testing.assert_allclose(divergence(log_p, log_q), [nats])


def test_agreement():
    one = np.array([[0, 1], [1, 0]], np.float32)
    assert agreement(one, np.array([[0, 2], [0, 2]], np.float32)).tolist() == [True, False]
