"""Choosing the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from llmq.errors import InputError, UsageError

__all__ = ["Sampling", "SamplingFields", "sample", "surviving"]


class SamplingFields(TypedDict, total=False):
    """The fields of `Sampling`, as keywords of other functions."""

    temp: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token: temperature, then `top_k`, then `top_p`, then `min_p`.

    Parameters
    ----------
    temp : float
        Logits are divided by it; 0 always takes the likeliest token.
    top_k : int
        Keep the `top_k` likeliest tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of likeliest tokens whose probabilities add up to `top_p`; 1 keeps all.
    min_p : float
        Keep tokens at least `min_p` times as likely as the likeliest.
    seed : int or None
        Of the random numbers; None takes another one each time.

    Raises
    ------
    UsageError
        A value out of range.
    """

    temp: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            (0.0 <= self.temp < math.inf, "temp", "a number from 0", self.temp),
            (self.top_k >= 0, "top_k", "an integer from 0", self.top_k),
            (0.0 <= self.top_p <= 1.0, "top_p", "a number from 0 to 1", self.top_p),
            (0.0 <= self.min_p <= 1.0, "min_p", "a number from 0 to 1", self.min_p),
            (self.seed is None or self.seed >= 0, "seed", "an integer from 0", self.seed),
        )
        for sound, name, expected, found in checks:
            if not sound:
                raise UsageError(f"{name} is out of range", expected=expected, found=found)

    def generator(self) -> np.random.Generator:
        """Start the random numbers."""
        return np.random.default_rng(self.seed)


def sample(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """Choose a token.

    Parameters
    ----------
    logits : float32 (vocab_size,)
        NaN counts as impossible. Of equal ones greedy choice takes the first.
    sampling : Sampling
    generator : numpy Generator
        Advanced by one number unless the choice is greedy.

    Raises
    ------
    InputError
        No logit is a number.
    """
    logits = np.where(np.isnan(logits), -np.inf, logits)
    likeliest = int(np.argmax(logits))
    if logits[likeliest] == -np.inf:
        raise InputError("the model gives no logits but NaN: its weights are corrupt, or overflow")
    if sampling.temp == 0.0:
        return likeliest
    ids, weights = surviving(logits, sampling)
    reached = np.cumsum(weights)
    return int(ids[min(np.searchsorted(reached, generator.random() * reached[-1], side="right"), ids.size - 1)])


def surviving(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be chosen, with weights in proportion to their probabilities.

    Each filter keeps all tokens that are as likely as the least likely one it must keep.

    Parameters
    ----------
    logits : float (vocab_size,)
        Without NaN, at least one above minus infinity.
    sampling : Sampling
        Its `temp` is above 0.

    Returns
    -------
    ids : int64 (n,)
        In ascending order.
    weights : float64 (n,)
        The likeliest has weight 1.
    """
    ids = np.arange(logits.size)
    if 0 < sampling.top_k < logits.size:
        ids = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
    weights = _weights(logits[ids], sampling.temp)
    if sampling.top_p < 1.0:
        ids, weights = _top_p(ids, weights, sampling.top_p)
    kept = weights >= max(sampling.min_p, np.finfo(np.float64).tiny)
    return ids[kept], weights[kept]


def _weights(logits: np.ndarray, temp: float) -> np.ndarray:
    """Probabilities over that of the likeliest; infinite logits share all of it."""
    largest = float(logits.max())
    if largest == math.inf:
        shared: np.ndarray = (logits == math.inf).astype(np.float64)
        return shared
    # A tiny temperature may overflow the quotient: minus infinity is right.
    with np.errstate(over="ignore"):
        weights: np.ndarray = np.exp((logits.astype(np.float64) - largest) / temp)
    return weights


def _top_p(ids: np.ndarray, weights: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    ascending = np.sort(weights)
    below = np.cumsum(ascending)
    # Dropped while they and all less likely ones add up to no more than 1 - top_p.
    dropped = int(np.searchsorted(below, (1.0 - top_p) * below[-1], side="right"))
    kept = weights >= ascending[min(dropped, ascending.size - 1)]
    return ids[kept], weights[kept]
