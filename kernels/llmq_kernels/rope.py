"""Rotary positions: element `i` of a head's first half turns with element `i` of its second half."""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import matrix_of
from llmq_kernels.jit import jit

__all__ = ["rope", "rope_reference", "rope_row"]


def rope_reference(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Specify `rope` in plain NumPy, without changing `x`.

    NaN or infinity reaches its own pair only.

    Examples
    --------
    >>> quarter_turn = np.array([[0.0]], np.float32), np.array([[1.0]], np.float32)
    >>> rope_reference(np.array([[[1.0, 2.0]]], np.float32), *quarter_turn).tolist()
    [[[-2.0, 1.0]]]
    """
    first, second = np.split(x, 2, axis=2)
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=2)


@jit(fastmath={"contract"})
def rope_row(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> None:
    """Rotate float32 (head_dim,) in place by float32 (head_dim / 2,)."""
    half = cosine.size
    first, second = x[:half], x[half:]
    for i in range(half):
        a, b = first[i], second[i]
        first[i] = a * cosine[i] - b * sine[i]
        second[i] = b * cosine[i] + a * sine[i]


@jit
def _rope(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> None:
    """Rotate float32 (tokens, heads, head_dim) in place by float32 (tokens, head_dim / 2)."""
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            rope_row(x[token, head], cosine[token], sine[token])


def rope(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> None:
    """Rotate every head of every token, in place.

    Parameters
    ----------
    x : float32 (tokens, heads, head_dim)
        Queries or keys; C-contiguous.
    cosine, sine : float32 (tokens, head_dim / 2)
        Of each token's angles.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit, or `x` cannot be written in place.
    """
    flags = x.flags
    if x.dtype != np.float32 or x.ndim != 3 or not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise ValueError(f"x must be a writable C-contiguous float32 array of 3 dimensions, not {x.dtype} {x.shape}")
    tokens, _, head_dim = x.shape
    cosine = matrix_of("cosine", cosine, np.float32, head_dim // 2)
    sine = matrix_of("sine", sine, np.float32, head_dim // 2)
    if head_dim % 2 or cosine.shape[0] != tokens or sine.shape[0] != tokens:
        raise ValueError(
            f"x {x.shape} needs cosine and sine ({tokens}, head_dim / 2), not {cosine.shape}, {sine.shape}"
        )
    _rope(x, cosine, sine)
