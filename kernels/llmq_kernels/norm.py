"""Root-mean-square norm: `y = weight * x / sqrt(mean(x**2) + eps)`, row by row."""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.jit import jit

__all__ = ["add_norm", "add_norm_reference", "rms_norm", "rms_norm_reference", "rms_norm_row"]


def rms_norm_reference(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Specify `rms_norm` in plain NumPy.

    A row of zeros stays zero; NaN or infinity makes NaN of its own row only.

    Examples
    --------
    >>> weight = np.array([5.0, 10.0], np.float32)
    >>> rms_norm_reference(np.array([[3.0, -4.0]], np.float32), weight, 0.0).round(2).tolist()
    [[4.239999771118164, -11.3100004196167]]
    """
    mean = np.mean(np.square(x, dtype=np.float32), axis=1, keepdims=True, dtype=np.float32)
    return weight * (x * (np.float32(1.0) / np.sqrt(mean + np.float32(eps))))


def add_norm_reference(x: np.ndarray, delta: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Specify `add_norm` in plain NumPy, without changing `x`.

    Examples
    --------
    >>> x, delta, weight = (np.array([a], np.float32) for a in ([1.0, 0.0], [2.0, -4.0], [5.0, 10.0]))
    >>> add_norm_reference(x, delta, weight[0], 0.0).round(2).tolist()
    [[4.239999771118164, -11.3100004196167]]
    """
    return rms_norm_reference(x + delta, weight, eps)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _sum_of_squares(x: np.ndarray) -> np.float32:
    """Sum the squares of float32 (columns,)."""
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@jit
def rms_norm_row(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Norm float32 (columns,) into `out`, which may be `x`."""
    mean = _sum_of_squares(x) / np.float32(x.size)
    scale = np.float32(1.0) / np.sqrt(np.float32(mean + eps))
    for i in range(x.size):
        out[i] = weight[i] * (x[i] * scale)


@jit
def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Norm float32 (rows, columns) with float32 (columns,) into `out`."""
    for row in range(x.shape[0]):
        rms_norm_row(x[row], weight, eps, out[row])


@jit(fastmath={"reassoc", "contract", "nsz"})
def _add(x: np.ndarray, delta: np.ndarray) -> np.float32:
    """Add float32 (columns,) to `x`, and return the sum of the squares."""
    total = np.float32(0.0)
    for i in range(x.size):
        value = x[i] + delta[i]
        x[i] = value
        total += value * value
    return total


@jit
def _add_norm(x: np.ndarray, delta: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Add float32 (rows, columns) to `x`, and norm the sum into `out`."""
    columns = x.shape[1]
    for row in range(x.shape[0]):
        mean = _add(x[row], delta[row]) / np.float32(columns)
        scale = np.float32(1.0) / np.sqrt(np.float32(mean + eps))
        for i in range(columns):
            out[row, i] = weight[i] * (x[row, i] * scale)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, *, out: np.ndarray | None = None) -> np.ndarray:
    """Divide each row by its root mean square and multiply it by a weight.

    Parameters
    ----------
    x : float32 (rows, columns)
        A row is a token, or one head of a token.
    weight : float32 (columns,)
    eps : float
        Added to the mean square.
    out : float32 (rows, columns), optional
        May be `x` itself.

    Returns
    -------
    float32 (rows, columns)

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    x = matrix_of("x", x, np.float32)
    weight = _weight_of(weight, x.shape[1])
    out = output_of(out, (x.shape[0], x.shape[1]))
    _rms_norm(x, weight, np.float32(eps), out)
    return out


def add_norm(
    x: np.ndarray, delta: np.ndarray, weight: np.ndarray, eps: float, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Add to the residual stream, in place, and norm the sum: `x += delta`, then `rms_norm(x, weight, eps)`.

    Parameters
    ----------
    x, delta : float32 (rows, columns)
        C-contiguous; `x` is changed.
    weight : float32 (columns,)
    eps : float
        Added to the mean square.
    out : float32 (rows, columns), optional
        May be `delta`.

    Returns
    -------
    float32 (rows, columns)

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    x = output_of(x, x.shape)
    delta = matrix_of("delta", delta, np.float32, x.shape[1] if x.ndim == 2 else None)
    if x.shape != delta.shape:
        raise ValueError(f"x {x.shape} and delta {delta.shape} must have one shape")
    out = output_of(out, x.shape)
    _add_norm(x, delta, _weight_of(weight, x.shape[1]), np.float32(eps), out)
    return out


def _weight_of(weight: np.ndarray, columns: int) -> np.ndarray:
    if weight.dtype != np.float32 or weight.shape != (columns,):
        raise ValueError(f"weight must be float32 ({columns},), not {weight.dtype} {weight.shape}")
    return frozen(np.ascontiguousarray(weight))
