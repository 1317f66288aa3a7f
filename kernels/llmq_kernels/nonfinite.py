"""NaN and infinity in a weight, counted while it streams through."""

from __future__ import annotations

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit

__all__ = ["count_nonfinite"]


@jit
def _count_nonfinite(bits: np.ndarray) -> tuple[int, int]:
    """Count NaNs and infinities in the bits of float32, uint32 (n,); integers, so that no flag can hide them."""
    nans = 0
    infinities = 0
    for value in bits:
        size = value & 0x7FFFFFFF
        nans += size > 0x7F800000
        infinities += size == 0x7F800000
    return nans, infinities


def count_nonfinite(x: np.ndarray) -> tuple[int, int]:
    """Count NaNs and infinities.

    Parameters
    ----------
    x : float32 (...)

    Returns
    -------
    nan, inf : int

    Raises
    ------
    TypeError
        Not float32.

    Examples
    --------
    >>> count_nonfinite(np.array([1.0, np.nan, -np.inf, np.inf], np.float32))
    (1, 2)
    """
    if x.dtype != np.float32:
        raise TypeError(f"x must be float32, not {x.dtype}")
    flat = np.require(x, None, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)
    nans, infinities = _count_nonfinite(frozen(flat.view(np.uint32)))
    return int(nans), int(infinities)
