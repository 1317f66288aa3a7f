"""NaN and infinity in a weight, counted while it streams through."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit

__all__ = ["count_nonfinite", "nonfinite_reference"]

_FORMS: Final[dict[str, tuple[Any, int, int]]] = {
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
    "float32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "float64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
}
"""Of each float dtype: its bits as an integer, all but the sign, and those of infinity."""


def nonfinite_reference(x: np.ndarray) -> tuple[int, int]:
    """Specify `count_nonfinite` in plain NumPy.

    Examples
    --------
    >>> nonfinite_reference(np.array([1.0, np.nan, -np.inf, np.inf], np.float16))
    (1, 2)
    """
    with np.errstate(invalid="ignore"):
        return int(np.isnan(x).sum()), int(np.isinf(x).sum())


@jit
def _largest(bits: np.ndarray, magnitude: int) -> Any:
    """Find the largest magnitude among the bits of floats, uint (n,): one pass as fast as memory."""
    largest = bits.dtype.type(0)
    for value in bits:
        largest = max(largest, bits.dtype.type(value & magnitude))
    return largest


@jit
def _count_nonfinite(bits: np.ndarray, magnitude: int, infinity: int) -> tuple[int, int]:
    """Count NaNs and infinities in the bits of floats, uint (n,); integers, so that no flag can hide them."""
    nans = 0
    infinities = 0
    for value in bits:
        size = value & magnitude
        nans += size > infinity
        infinities += size == infinity
    return nans, infinities


def count_nonfinite(x: np.ndarray) -> tuple[int, int]:
    """Count NaNs and infinities.

    Parameters
    ----------
    x : float16, bfloat16, float32 or float64 (...)

    Returns
    -------
    nan, inf : int

    Raises
    ------
    TypeError
        Another dtype.

    Examples
    --------
    >>> count_nonfinite(np.array([1.0, np.nan, -np.inf, np.inf], np.float32))
    (1, 2)
    """
    if x.dtype.name not in _FORMS:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, not {x.dtype}")
    integer, magnitude, infinity = _FORMS[x.dtype.name]
    flat = np.require(x, None, ["C_CONTIGUOUS", "ALIGNED"]).reshape(-1)
    bits = frozen(flat.view(integer))
    if _largest(bits, integer(magnitude)) < infinity:
        return 0, 0
    nans, infinities = _count_nonfinite(bits, integer(magnitude), integer(infinity))
    return int(nans), int(infinities)
