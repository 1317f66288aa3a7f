"""Counting floats in bins whose width is a power of two and whose edges are whole multiples of it.

Such bins nest: two neighbours of one width make one bin of twice that width. A histogram that grows by merging pairs is
the very one that a single pass over all the data would have counted.
"""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import frozen, matrix_of
from llmq_kernels.jit import jit

__all__ = ["count_in_bins", "count_in_bins_reference"]


def count_in_bins_reference(rows: np.ndarray, exponent: np.ndarray, first: np.ndarray, bins: int) -> np.ndarray:
    """Specify in plain NumPy what `count_in_bins` adds: bin `j` of a row has ``floor(x / 2**exponent) == first + j``.

    A value at an edge belongs to the bin above it, -0 beside 0.

    Examples
    --------
    >>> rows = np.array([[-0.5, 0.0, 0.9, 1.0, 2.9]], np.float32)
    >>> count_in_bins_reference(rows, np.array([0]), np.array([-1]), 4).tolist()
    [[1, 2, 1, 1]]
    """
    place = np.floor(np.ldexp(rows.astype(np.float64), -exponent[:, None])).astype(np.int64) - first[:, None]
    return np.array([np.bincount(row, minlength=bins) for row in place], np.int64).reshape(-1, bins)


@jit
def _count_in_bins(rows: np.ndarray, exponent: np.ndarray, first: np.ndarray, counts: np.ndarray) -> int:
    """Add float32 (channels, n) to int64 (channels, bins); returns how many values lie in no bin."""
    outside = 0
    bins = counts.shape[1]
    for channel in range(rows.shape[0]):
        factor = 2.0 ** np.float64(-exponent[channel])
        start, end = np.float64(first[channel]), np.float64(first[channel] + bins)
        for i in range(rows.shape[1]):
            place = np.floor(np.float64(rows[channel, i]) * factor)
            if start <= place < end:
                counts[channel, np.int64(place - start)] += 1
            else:
                outside += 1
    return outside


def count_in_bins(rows: np.ndarray, exponent: np.ndarray, first: np.ndarray, counts: np.ndarray) -> None:
    """Add values to a histogram for each row, in place.

    Parameters
    ----------
    rows : float32 (channels, n)
    exponent : int64 (channels,)
        Of the width of bins, ``2**exponent``: -149 to 128.
    first : int64 (channels,)
        The lower edge of the first bin, in widths: at most 2**25 on either side of zero.
    counts : int64 (channels, bins)
        Writable.

    Raises
    ------
    TypeError, ValueError
        Another dtype or shape, or values in none of the bins, NaN among them; the others have been counted then.

    Examples
    --------
    >>> counts = np.zeros((1, 4), np.int64)
    >>> count_in_bins(np.array([[-0.5, 0.9, 2.9]], np.float32), np.array([0]), np.array([-1]), counts)
    >>> counts.tolist()
    [[1, 1, 0, 1]]
    """
    rows = matrix_of("rows", rows, np.float32)
    if counts.dtype != np.int64 or counts.ndim != 2 or not (counts.flags.c_contiguous and counts.flags.writeable):
        raise ValueError(f"counts must be writable C-contiguous int64 (channels, bins), not {counts.dtype}")
    for name, array in (("exponent", exponent), ("first", first)):
        if array.dtype != np.int64 or array.shape != (rows.shape[0],):
            raise ValueError(f"{name} must be int64 ({rows.shape[0]},), not {array.dtype} of shape {array.shape}")
    if counts.shape[0] != rows.shape[0]:
        raise ValueError(f"counts must have {rows.shape[0]} rows, not {counts.shape[0]}")
    exponent, first = (frozen(np.ascontiguousarray(array)) for array in (exponent, first))
    outside = _count_in_bins(rows, exponent, first, counts)
    if outside:
        raise ValueError(f"{outside} values lie in none of the bins")
