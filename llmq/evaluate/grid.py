"""Where weights lie on the grids of their groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmq_kernels.layout import midpoint

if TYPE_CHECKING:
    from llmq.spec import QuantizedTensor

__all__ = ["GridUse", "outside", "positions"]

_FAR: Final = float(1 << 20)
"""Positions are cut off so far from zero."""


def positions(rows: np.ndarray, quantized: QuantizedTensor) -> np.ndarray:
    """Where weights lie on the grid of their groups: ``w / scale + zero_point``, so that code `c` lies at `c`.

    Parameters
    ----------
    rows : float16, bfloat16 or float32 (n, in_features)
        Finite.
    quantized : QuantizedTensor
        What they became.

    Returns
    -------
    float32 (n, in_features)
        The zero point where a scale is 0; no further from 0 than 2**20.

    Examples
    --------
    >>> from llmq.spec import QuantizedTensor, QuantSpec
    >>> spec = QuantSpec(bits=2, group_size=4).resolve(4, "float32")
    >>> packed = np.zeros((1, 4), np.uint8)
    >>> weight = QuantizedTensor(spec, (1, 4), packed, np.full((1, 1), 0.5, np.float32))
    >>> positions(np.array([[-1.0, 0.0, 0.5, 3.0]], np.float32), weight).tolist()
    [[0.0, 2.0, 3.0, 8.0]]
    """
    spec = quantized.spec
    groups = rows.astype(np.float32).reshape(len(rows), -1, spec.group_size)
    scale = quantized.scale.astype(np.float32)[:, :, None]
    zero = (
        np.float32(midpoint(spec.bits))
        if quantized.zero_point is None
        else quantized.zero_point.astype(np.float32)[:, :, None]
    )
    with np.errstate(over="ignore"):  # cut off below
        steps = groups / np.where(scale == 0.0, np.float32(np.inf), scale)
    placed: np.ndarray = np.clip(steps + zero, -_FAR, _FAR).astype(np.float32).reshape(rows.shape)
    return placed


def outside(placed: np.ndarray, bits: int) -> int:
    """How many `positions` lie more than half a step beyond the first or the last code.

    >>> outside(np.array([-0.5, 0.0, 3.4, 3.6]), 2)
    1
    """
    return int(np.count_nonzero((placed < -0.5) | (placed > (1 << bits) - 0.5)))


class GridUse:
    """How weights use the ends of their grids, over the blocks of rows seen so far.

    Parameters
    ----------
    bits : int
        Of a code.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._outside = self._ends = self._elements = 0

    def add(self, rows: np.ndarray, quantized: QuantizedTensor) -> None:
        """Count a block of rows, float (n, in_features), and what they became."""
        codes = quantized.codes()
        self._outside += outside(positions(rows, quantized), self._bits)
        self._ends += int(np.count_nonzero((codes == 0) | (codes == (1 << self._bits) - 1)))
        self._elements += rows.size

    @property
    def saturation(self) -> float:
        """Share of weights more than half a step beyond the grid: those that were clipped."""
        return self._outside / max(1, self._elements)

    @property
    def end_codes(self) -> float:
        """Share of weights with the first or the last code."""
        return self._ends / max(1, self._elements)
