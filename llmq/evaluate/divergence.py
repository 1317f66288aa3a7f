"""Comparing the predictions of two models, position by position, in float64."""

from __future__ import annotations

import numpy as np

__all__ = ["agreement", "divergence", "log_softmax"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64 (n, vocab_size), of logits (n, vocab_size) without NaN.

    >>> log_softmax(np.array([[1000.0, 1000.0]], np.float32)).round(4).tolist()
    [[-0.6931, -0.6931]]
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence `sum(p * (log p - log q))` in nats, float64 (n,).

    Both are log-probabilities (n, vocab_size). A token that `p` holds impossible adds nothing; one that only `q` does
    makes it infinite.

    >>> divergence(np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])).round(4).tolist()
    [0.5108]
    """
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # infinity minus infinity where p is 0
        terms = np.where(p > 0.0, p * (log_p - log_q), 0.0)
    # Rounding may leave a sum of equal distributions a hair below 0.
    nats: np.ndarray = np.maximum(terms.sum(axis=1), 0.0)
    return nats


def agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether both logits (n, vocab_size) have their maximum at the same token, bool (n,)."""
    same: np.ndarray = one.argmax(axis=1) == other.argmax(axis=1)
    return same
