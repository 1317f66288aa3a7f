"""The gate of the MLP: `silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`."""

from __future__ import annotations

from typing import Final

import numba
import numpy as np

from llmq_kernels.doors import matrix_of, output_of
from llmq_kernels.exponential import exp
from llmq_kernels.jit import jit

__all__ = ["swiglu", "swiglu_reference"]

_PARALLEL: Final = 1 << 16
"""Elements from which starting the threads pays."""


def swiglu_reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Specify `swiglu` in plain NumPy.

    NaN and infinity reach their own element only, which becomes NaN or infinite.

    Examples
    --------
    >>> swiglu_reference(np.array([[0.0, 2.0]], np.float32), np.array([[5.0, 10.0]], np.float32)).round(1).tolist()
    [[0.0, 17.600000381469727]]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        gated: np.ndarray = gate / (np.float32(1.0) + np.exp(-gate)) * up
    return gated


@jit(fastmath={"contract"})
def _gated(gate: np.float32, up: np.float32) -> np.float32:
    return np.float32(gate / (np.float32(1.0) + exp(-gate)) * up)


@jit(fastmath={"contract"})
def _swiglu_row(gate: np.ndarray, up: np.ndarray, out: np.ndarray, replaced: int) -> None:
    """Gate one row, float32 (columns,); `out` is `gate` where `replaced` is 1, and `up` where it is 2.

    What is changed in place has a loop of its own: where an array that is written may be one of those that are read,
    LLVM's vector code is not run, and all takes ten times as long.
    """
    if replaced == 1:
        for i in range(gate.size):
            out[i] = _gated(out[i], up[i])
    elif replaced == 2:
        for i in range(up.size):
            out[i] = _gated(gate[i], out[i])
    else:
        for i in range(gate.size):
            out[i] = _gated(gate[i], up[i])


@jit
def _swiglu(gate: np.ndarray, up: np.ndarray, out: np.ndarray, replaced: int) -> None:
    """Gate float32 (tokens, columns) on one thread."""
    for token in range(gate.shape[0]):
        _swiglu_row(gate[token], up[token], out[token], replaced)


@jit(parallel=True)
def _swiglu_parallel(gate: np.ndarray, up: np.ndarray, out: np.ndarray, replaced: int) -> None:
    """Gate float32 (tokens, columns), each token on one of the threads."""
    for token in numba.prange(gate.shape[0]):
        _swiglu_row(gate[token], up[token], out[token], replaced)


def swiglu(gate: np.ndarray, up: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Compute `silu(gate) * up`.

    Parameters
    ----------
    gate, up : float32 (tokens, columns)
    out : float32 (tokens, columns), optional
        May be `gate` or `up`.

    Returns
    -------
    float32 (tokens, columns)

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    # Another view of the same elements is right too, but slow.
    replaced = 0 if out is None else 1 if out is gate else 2 if out is up else 0
    gate = matrix_of("gate", gate, np.float32)
    up = matrix_of("up", up, np.float32, gate.shape[1])
    if up.shape != gate.shape:
        raise ValueError(f"gate {gate.shape} and up {up.shape} must have one shape")
    out = output_of(out, (gate.shape[0], gate.shape[1]))
    run = _swiglu_parallel if gate.shape[0] > 1 and gate.size >= _PARALLEL else _swiglu
    run(gate, up, out, replaced)
    return out
