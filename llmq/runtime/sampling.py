"""Choosing the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from llmq.errors import InputError, UsageError
from llmq_kernels.choice import Rules, choose, likeliest

if TYPE_CHECKING:
    from llmq_kernels.scratch import Scratch

__all__ = ["Sampling", "SamplingFields", "sample"]


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


def sample(
    logits: np.ndarray, sampling: Sampling, generator: np.random.Generator, scratch: Scratch | None = None
) -> int:
    """Choose a token.

    Parameters
    ----------
    logits : float32 (vocab_size,)
        NaN counts as impossible. Of equal ones greedy choice takes the first.
    sampling : Sampling
    generator : numpy Generator
        Advanced by one number unless the choice is greedy.
    scratch : Scratch, optional
        Arrays kept from one token to the next.

    Raises
    ------
    InputError
        No logit is a number.
    """
    if sampling.temp == 0.0:
        token = likeliest(logits)
    else:
        rules = Rules(sampling.temp, sampling.top_k, sampling.top_p, sampling.min_p)
        token = choose(logits, rules, generator.random(), scratch=scratch)
    if token < 0:
        raise InputError("the model gives no logits but NaN: its weights are corrupt, or overflow")
    return token
