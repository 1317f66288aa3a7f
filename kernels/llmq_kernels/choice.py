"""The next token from its logits: temperature, then `top_k`, then `top_p`, then `min_p`, without sorting them."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit
from llmq_kernels.scratch import Scratch

__all__ = ["Rules", "choose", "likeliest", "likeliest_reference", "surviving_reference"]

_TINY: Final = float(np.finfo(np.float64).tiny)


class Rules(NamedTuple):
    """How a token is chosen.

    Parameters
    ----------
    temp : float
        Logits are divided by it; above 0.
    top_k : int
        Keep so many of the likeliest tokens; 0 keeps all.
    top_p : float
        Keep the smallest set of likeliest tokens whose probabilities add up to it; 1 keeps all.
    min_p : float
        Keep tokens at least so many times as likely as the likeliest.
    """

    temp: float
    top_k: int
    top_p: float
    min_p: float


def likeliest_reference(logits: np.ndarray) -> int:
    """Specify `likeliest` in plain NumPy: the first of the largest, NaN left out; -1 if all are NaN or -infinity.

    Examples
    --------
    >>> likeliest_reference(np.array([np.nan, 1.0, 3.0, 3.0], np.float32))
    2
    """
    numbers = np.where(np.isnan(logits), -np.inf, logits)
    found = int(np.argmax(numbers))
    return found if numbers[found] > -np.inf else -1


def surviving_reference(logits: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Specify in plain NumPy which tokens `choose` may choose, ascending, with float64 weights; the likeliest has 1.

    Each filter keeps all tokens that are as likely as the least likely one it must keep. NaN counts as impossible;
    infinite logits share all of the probability.

    Examples
    --------
    >>> logits = np.log(np.array([4.0, 1.0, 2.0, 1.0], np.float32))
    >>> [x.round(3).tolist() for x in surviving_reference(logits, Rules(1.0, 0, 0.7, 0.0))]
    [[0, 2], [1.0, 0.5]]
    """
    logits = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    ids, largest = np.arange(logits.size), logits.max()
    if 0 < rules.top_k < logits.size:
        ids = np.flatnonzero(logits >= np.partition(logits, -rules.top_k)[-rules.top_k])
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp((logits[ids] - largest) / rules.temp)
    if largest == np.inf:
        weights = (logits[ids] == np.inf).astype(np.float64)
    if rules.top_p < 1.0:
        ascending = np.sort(weights)
        below = np.cumsum(ascending)
        # Dropped while they and all less likely ones add up to no more than 1 - top_p.
        dropped = int(np.searchsorted(below, (1.0 - rules.top_p) * below[-1], side="right"))
        kept = weights >= ascending[min(dropped, ascending.size - 1)]
        ids, weights = ids[kept], weights[kept]
    kept = weights >= max(rules.min_p, _TINY)
    return ids[kept], weights[kept]


@jit
def _key(x: np.float32) -> np.uint32:
    """Integer that orders as the number does; NaN counts as -infinity."""
    bits = bits_of(x)
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        bits = np.uint32(0xFF800000)
    return np.uint32(bits ^ (np.uint32(0xFFFFFFFF) if bits >> 31 else np.uint32(0x80000000)))


@jit
def _number(key: np.uint32) -> np.float32:
    """Inverse of `_key`."""
    return float_of(np.uint32(key ^ (np.uint32(0x80000000) if key >> 31 else np.uint32(0xFFFFFFFF))))


@jit
def _likeliest(logits: np.ndarray) -> int:
    """Index of the first of the largest of float32 (n,), or -1."""
    most = np.uint32(0)
    for i in range(logits.size):
        most = max(most, _key(logits[i]))
    largest = _number(most)
    if logits.size == 0 or largest == -np.inf:
        return -1
    for i in range(logits.size):
        if logits[i] == largest:
            return i
    return -1


@jit
def _threshold(logits: np.ndarray, weights: np.ndarray, budget: float, sums: np.ndarray) -> np.float32:
    """Smallest logit such that those up to it weigh more than `budget`; the largest if there is none.

    Parameters
    ----------
    logits : float32 (n,)
    weights : float64 (n,), or (0,) where each weighs 1
    budget : float
    sums : float64 (2048,)
        Scratch.
    """
    prefix, below = np.uint32(0), 0.0
    # The key is found from its highest bits down: 11, 11 and 10 of them.
    for shift, width in ((21, 11), (10, 11), (0, 10)):
        sums[:] = 0.0
        mask = np.uint32((1 << width) - 1)
        for i in range(logits.size):
            key = _key(logits[i])
            if width + shift == 32 or key >> np.uint32(width + shift) == prefix:
                sums[(key >> np.uint32(shift)) & mask] += weights[i] if weights.size else 1.0
        digit, before = np.uint32(0), below
        for at in range(1 << width):
            if sums[at] > 0.0:
                digit, before = np.uint32(at), below
                below += sums[at]
                if below > budget:
                    break
        prefix, below = np.uint32((prefix << np.uint32(width)) | digit), before
    return _number(prefix)


@jit
def _weight(logit: float, largest: float, temp: float) -> float:
    """Probability over that of the likeliest."""
    if largest == np.inf:
        return 1.0 if logit == np.inf else 0.0
    return math.exp((logit - largest) / temp) if logit > -np.inf else 0.0


@jit
def _weigh(logits: np.ndarray, rules: Rules, largest: float, weights: np.ndarray, sums: np.ndarray) -> None:
    """Write the weights of all tokens, zero for those that may not be chosen."""
    least = np.float32(-np.inf)
    if 0 < rules.top_k < logits.size:
        least = _threshold(logits, weights[:0], float(logits.size - rules.top_k), sums)
    total = 0.0
    for i in range(logits.size):
        weights[i] = _weight(float(logits[i]), largest, rules.temp) if logits[i] >= least else 0.0
        total += weights[i]
    if rules.top_p < 1.0:
        least = _threshold(logits, weights, (1.0 - rules.top_p) * total, sums)
    floor = max(rules.min_p, _TINY)
    for i in range(logits.size):
        if weights[i] < floor or logits[i] < least:
            weights[i] = 0.0


@jit
def _choose(logits: np.ndarray, rules: Rules, at: float, weights: np.ndarray, sums: np.ndarray) -> int:
    """Choose a token by a number from 0 to 1, or return -1."""
    best = _likeliest(logits)
    if best < 0:
        return -1
    _weigh(logits, rules, float(logits[best]), weights, sums)
    total = 0.0
    for i in range(weights.size):
        total += weights[i]
    reached = 0.0
    for i in range(weights.size):
        reached += weights[i]
        if reached > at * total:
            return i
    return best


def likeliest(logits: np.ndarray) -> int:
    """Index of the largest logit, float32 (n,): the first of equals, NaN left out; -1 if none is above -infinity.

    Raises
    ------
    TypeError, ValueError
        Another dtype or shape.
    """
    return int(_likeliest(_checked(logits)))


def choose(logits: np.ndarray, rules: Rules, at: float, *, scratch: Scratch | None = None) -> int:
    """Choose a token at random.

    Parameters
    ----------
    logits : float32 (n,)
    rules : Rules
    at : float
        A random number, at least 0 and below 1: the token where so much of the total weight is passed.
    scratch : Scratch, optional
        What calls one after another should share, so that none of them allocates.

    Returns
    -------
    int
        -1 if no logit is above -infinity.

    Raises
    ------
    TypeError, ValueError
        Another dtype or shape, or no temperature.

    Examples
    --------
    >>> logits = np.log(np.array([4.0, 1.0, 2.0, 1.0], np.float32))
    >>> [choose(logits, Rules(1.0, 0, 0.7, 0.0), at) for at in (0.0, 0.6, 0.7, 0.9)]
    [0, 0, 2, 2]
    """
    logits = _checked(logits)
    if not rules.temp > 0.0:
        raise ValueError(f"temp must be above 0, not {rules.temp}")
    scratch = scratch or Scratch()
    weights = scratch.room("weights", logits.shape, np.float64)
    sums = scratch.room("sums", (2048,), np.float64)
    top_k = int(min(rules.top_k, logits.size))
    rules = Rules(float(rules.temp), top_k, float(rules.top_p), float(rules.min_p))
    return int(_choose(logits, rules, float(at), weights, sums))


def _checked(logits: np.ndarray) -> np.ndarray:
    if logits.dtype != np.float32:
        raise TypeError(f"logits must be float32, not {logits.dtype}")
    if logits.ndim != 1:
        raise ValueError(f"logits must be one-dimensional, not {logits.shape}")
    return frozen(np.ascontiguousarray(logits))
