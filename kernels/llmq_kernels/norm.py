"""Root-mean-square norm: `y = weight * x / sqrt(mean(x**2) + eps)`, row by row."""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import frozen, matrix_of, output_of
from llmq_kernels.jit import jit

__all__ = ["rms_norm", "rms_norm_reference"]


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


@jit(fastmath={"reassoc", "contract", "nsz"})
def _sum_of_squares(x: np.ndarray) -> np.float32:
    """Sum the squares of float32 (columns,)."""
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    return total


@jit
def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Norm float32 (rows, columns) with float32 (columns,) into `out`."""
    columns = x.shape[1]
    for row in range(x.shape[0]):
        mean = _sum_of_squares(x[row]) / np.float32(columns)
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
    if weight.dtype != np.float32 or weight.shape != x.shape[1:]:
        raise ValueError(f"weight must be float32 {x.shape[1:]}, not {weight.dtype} {weight.shape}")
    out = output_of(out, (x.shape[0], x.shape[1]))
    _rms_norm(x, frozen(np.ascontiguousarray(weight)), np.float32(eps), out)
    return out
