"""Angles of rotary positions: the frequencies of each kind of `Rope`, and their sines and cosines.

Everything is computed in float32 in the order in which transformers computes it: at position 100,000 another order
moves an angle by a hundredth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from llmq.architectures import Rope

__all__ = ["RotaryTable", "frequencies", "rotation"]

_FIRST: Final = 512
"""Positions that a table begins with."""


def frequencies(rope: Rope, head_dim: int, length: int) -> np.ndarray:
    """Radians by which each pair of a head turns from one position to the next.

    Parameters
    ----------
    rope : Rope
    head_dim : int
        Elements of a head.
    length : int
        Tokens of the whole text; `dynamic` alone depends on it.

    Returns
    -------
    float32 (head_dim / 2,)
    """
    if rope.kind == "dynamic":
        return _plain(_stretched_theta(rope, head_dim, length), head_dim)
    if rope.kind == "yarn":
        return _yarn(rope, head_dim)
    if rope.kind == "llama3":
        return _llama3(rope, _plain(rope.theta, head_dim))
    found: np.ndarray = _plain(rope.theta, head_dim) / np.float32(rope.factor if rope.kind == "linear" else 1.0)
    return found


def rotation(rope: Rope, head_dim: int, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions int64 (tokens,), each float32 (tokens, head_dim / 2)."""
    angles = positions.astype(np.float32)[:, None] * frequencies(rope, head_dim, length)
    factor = np.float32(rope.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


class RotaryTable:
    """Cosines and sines of all positions met so far; computed once, in a table that at least doubles when it grows.

    Parameters
    ----------
    rope : Rope
    head_dim : int
        Elements of a head.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self._rope = rope
        self._head_dim = head_dim
        # Replaced as a whole, so that several threads may ask.
        self._table = self._compute(np.arange(_FIRST), 0)

    def rows(self, start: int, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and sines of positions from `start`, each read-only float32 (count, head_dim / 2).

        Parameters
        ----------
        start, count : int
        length : int
            Tokens of the whole text. Once they stretch a `dynamic` rope, every length has angles of its own, which are
            computed anew.
        """
        if self._rope.kind == "dynamic" and length > self._rope.original_max_position:
            return self._compute(np.arange(start, start + count), length)
        known = self._table
        if start + count > len(known[0]):
            new = self._compute(np.arange(len(known[0]), max(start + count, 2 * len(known[0]))), 0)
            known = _frozen(np.concatenate([known[0], new[0]]), np.concatenate([known[1], new[1]]))
            self._table = known
        return known[0][start : start + count], known[1][start : start + count]

    def _compute(self, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        return _frozen(*rotation(self._rope, self._head_dim, positions, length))


def _frozen(cosine: np.ndarray, sine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cosine.flags.writeable = sine.flags.writeable = False
    return cosine, sine


def _powers(theta: float, head_dim: int) -> np.ndarray:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers: np.ndarray = np.power(np.float32(theta), exponents, dtype=np.float32)
    return powers


def _plain(theta: float, head_dim: int) -> np.ndarray:
    return np.float32(1.0) / _powers(theta, head_dim)


def _stretched_theta(rope: Rope, head_dim: int, length: int) -> float:
    """NTK-aware scaling: the lowest frequency is divided by the stretch, the highest kept."""
    longer = np.float32(rope.factor * max(length, rope.original_max_position))
    stretch = longer / np.float32(rope.original_max_position) - np.float32(rope.factor - 1.0)
    return float(np.float32(rope.theta) * stretch ** np.float32(head_dim / (head_dim - 2)))


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    original = rope.original_max_position
    wavelength = np.float32(2.0 * math.pi) / plain
    long = wavelength > original / rope.low_freq_factor
    short = wavelength < original / rope.high_freq_factor
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.astype(np.float32)
    stretched = plain / np.float32(rope.factor)
    blended = (1 - blend) * stretched + blend * plain
    found: np.ndarray = np.where(long, stretched, np.where(short, plain, blended)).astype(np.float32)
    return found


def _yarn(rope: Rope, head_dim: int) -> np.ndarray:
    """Blend of "YaRN: Efficient Context Window Extension", section 3.2."""

    def pair_that_turns(times: float) -> float:
        turns = math.log(rope.original_max_position / (times * 2 * math.pi))
        return head_dim * turns / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1)
    powers = _powers(rope.theta, head_dim)
    stretched = np.float32(1.0) / (np.float32(rope.factor) * powers)
    found: np.ndarray = stretched * (1 - kept) + np.float32(1.0) / powers * kept
    return found
