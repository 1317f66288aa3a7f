"""Activations to int8, one scale for each group: `x` is about `scale * code`."""

from __future__ import annotations

import functools

import numpy as np

from llmq_kernels.doors import matrix_of
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit

__all__ = ["activation_group", "activations_reference", "quantize_activations"]


def activations_reference(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Specify `quantize_activations` in plain NumPy, for finite `x`.

    Examples
    --------
    >>> codes, scale, sums = activations_reference(np.array([[127.0, -1.5, 0.5, 0.0]], np.float32), 2)
    >>> codes.tolist(), sums.tolist()
    ([[127, -2, 127, 0]], [[125, 127]])
    """
    groups = x.reshape(x.shape[0], x.shape[1] // group_size, group_size)
    scale = np.maximum(np.abs(groups).max(axis=2) / np.float32(127), np.float32(2.0**-126))
    codes = np.rint(groups / scale[:, :, None]).astype(np.int8)
    return codes.reshape(x.shape), scale, codes.sum(axis=2, dtype=np.int32)


@functools.cache
def activation_group(group_size: int) -> int:
    """Return how many columns share a scale of the activations, for a weight whose groups have `group_size` columns.

    The weight's own group up to 256 columns. Of larger groups (a whole row, say) the largest divisor that is at most
    256 and at least 32; a group without one is taken whole, as long as 32-bit sums hold its products.

    Examples
    --------
    >>> [activation_group(n) for n in (64, 256, 4096, 1536, 1018)]
    [64, 256, 256, 256, 1018]
    """
    if group_size <= 256:
        return group_size
    moderate = (n for n in range(256, 31, -1) if group_size % n == 0)
    return next(moderate, None) or max(n for n in range(1, 65537) if group_size % n == 0)


@jit
def _largest(x: np.ndarray) -> np.float32:
    """Find the largest magnitude in float32 (n,), comparing bits as integers: NaN beats everything."""
    most = np.uint32(0)
    for value in x:
        most = max(most, np.uint32(bits_of(value) & np.uint32(0x7FFFFFFF)))
    return float_of(most)


@jit
def _encode(x: np.ndarray, scale: np.float32, codes: np.ndarray) -> np.int32:
    """Round float32 (n,) to int8 (n,); return the sum of the codes."""
    total = np.int32(0)
    for i in range(x.size):
        code = np.int32(min(max(np.rint(x[i] / scale), np.float32(-127.0)), np.float32(127.0)))
        codes[i] = np.int8(code)
        total = np.int32(total + code)
    return total


@jit
def _quantize_activations(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, sums: np.ndarray) -> None:
    """Quantize all groups of float32 (tokens, columns); the shapes of the results tell the group size."""
    tokens, n_groups = scale.shape
    group_size = x.shape[1] // max(n_groups, 1)
    for token in range(tokens):
        for group in range(n_groups):
            start = group * group_size
            part = x[token, start : start + group_size]
            s = _largest(part) / np.float32(127.0)
            s = np.float32(2.0**-126) if s < np.float32(2.0**-126) else s
            scale[token, group] = s
            sums[token, group] = _encode(part, s, codes[token, start : start + group_size])


def quantize_activations(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize activations to int8 with one scale a group, ``scale = max|x| / 127``, half to even.

    Each value is off by at most `scale / 2`, so that one output of ``compute="int8"`` differs from exact activations
    by at most ``sum over groups of scale / 2 * sum|w|``, and is exact wherever all values of a group are multiples
    of its scale. Groups of zeros get the scale 2**-126. A group with NaN or infinity gets such a scale too, and
    products with it are NaN or infinite.

    Parameters
    ----------
    x : float32 (tokens, columns)
    group_size : int
        Divides `columns`; at most 65,536, so that 32-bit sums of products hold.

    Returns
    -------
    codes : int8 (tokens, columns)
        -127 to 127.
    scale : float32 (tokens, n_groups)
    sums : int32 (tokens, n_groups)
        Sums of the codes of each group.

    Raises
    ------
    TypeError, ValueError
        Not a float32 matrix, or a group size that does not divide it or is too large.
    """
    x = matrix_of("x", x, np.float32)
    tokens, columns = x.shape
    if not 1 <= group_size <= 65536 or columns % group_size:
        raise ValueError(f"group size {group_size} does not divide {columns} columns, or is above 65536")
    shape = (tokens, columns // group_size)
    codes, scale, sums = np.empty(x.shape, np.int8), np.empty(shape, np.float32), np.empty(shape, np.int32)
    _quantize_activations(x, codes, scale, sums)
    return codes, scale, sums
