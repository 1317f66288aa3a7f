"""Scales from the extremes of each group: round to nearest, and the textbook's grids."""

from __future__ import annotations

import numpy as np

from llmq_kernels.floats import INFINITE, round_scale, source_bits, store_scale
from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS, Grid, midpoint
from llmq_kernels.quantize_rows import run_rows

__all__ = [
    "choose_and_pack",
    "divisor",
    "group_views",
    "new_scales",
    "range_reference",
    "range_scales",
    "stored_scales",
]


def range_reference(group: np.ndarray, bits: int, symmetric: bool, narrow: bool) -> tuple[float, float]:
    """Specify the scale, before it is rounded to its dtype, and zero point of one group in plain NumPy.

    The range of an asymmetric grid includes zero. A group of zeros has scale 0 here; rounding makes it tiny. A
    scale near the largest float32 is lowered when it is rounded, so that every code stands for a finite number.

    Examples
    --------
    >>> range_reference(np.array([-7.5, 1.0]), 4, True, False)
    (1.0, 8.0)
    >>> range_reference(np.array([-5.0, 10.0]), 4, False, False)
    (1.0, 5.0)
    """
    if symmetric:
        return float(np.abs(group).max()) / divisor(bits, narrow), midpoint(bits)
    low, high, levels = min(0.0, float(group.min())), max(0.0, float(group.max())), 2**bits - 1
    scale = (high - low) / levels
    return scale, float(np.clip(np.rint(-low / scale), 0, levels)) if scale else 0.0


def divisor(bits: int, narrow: bool) -> float:
    """Return the steps from zero to the largest magnitude of a symmetric grid: 7.5 for 4 bits, 7 if narrow."""
    return 2.0 ** (bits - 1) - (1.0 if narrow else 0.5)


def new_scales(rows: int, columns: int, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Allocate scales, uint16 (rows, n_groups) or twice as wide, and zero points, uint8 (rows, n_groups) or (0, 0).

    Raises
    ------
    ValueError
        A group size that does not divide `columns`, a width or kind out of range, or a narrow grid of one bit.
    """
    if not 1 <= grid.bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {grid.bits}")
    if grid.group_size < 1 or columns < 1 or columns % grid.group_size:
        raise ValueError(f"group size {grid.group_size} does not divide {columns} columns")
    if grid.scale_kind not in SCALE_KINDS.values():
        raise ValueError(f"unknown scale kind {grid.scale_kind}")
    if grid.narrow and (grid.bits == 1 or not grid.symmetric):
        raise ValueError("a narrow range needs a symmetric grid of at least 2 bits")
    n_groups = columns // grid.group_size
    words = 2 if grid.scale_kind == SCALE_KINDS["float32"] else 1
    scale = np.empty((rows, n_groups * words), np.uint16)
    return scale, np.empty((0, 0) if grid.symmetric else (rows, n_groups), np.uint8)


def range_scales(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points that just hold each group.

    Symmetric: ``s = max|x| / (2**(bits-1) - 1/2)``, narrow ``s = max|x| / (2**(bits-1) - 1)``. Asymmetric:
    ``s = (max - min) / (2**bits - 1)`` and ``z = -round(min / s)``, over a range that includes zero, with `s`
    already rounded to its dtype. Scales are positive, never zero (see `floats.round_scale`).

    Parameters
    ----------
    weight : float16, bfloat16 or float32 (rows, columns)
    grid : Grid

    Returns
    -------
    scale : uint16 (rows, n_groups), twice as wide for float32 scales
        Bits of the scales.
    zero_point : uint8 (rows, n_groups) or None
        None for symmetric grids.

    Raises
    ------
    TypeError, ValueError
        A weight or grid that does not fit.
    FloatingPointError
        NaN or infinity in the weight.
    """
    return choose_and_pack(weight, grid, None)


def choose_and_pack(weight: np.ndarray, grid: Grid, packed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points as `range_scales` does and, in the same pass, fill in packed codes."""
    source = source_bits("weight", weight)
    rows, columns = source[0].shape
    scale, zero_point = new_scales(rows, columns, grid)
    tops = np.empty(rows, np.uint32)
    zeros = None if grid.symmetric else zero_point
    run_rows(source, grid, (scale, zeros), packed, tops)
    if tops.size and tops.max() >= INFINITE:
        raise FloatingPointError("weight holds NaN or infinity")
    return scale, zeros


def group_views(
    bits: np.ndarray, grid: Grid, scales: tuple[np.ndarray, np.ndarray | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look at the rows of a matrix and their scales as one list of groups.

    Parameters
    ----------
    bits : uint16 or uint32 (rows, columns)
        Bits of floats, C-contiguous.
    grid : Grid
    scales : (uint16 (rows, n_groups or 2 * n_groups), uint8 (rows, n_groups) or None)
        Scales and zero points, as of `range_scales`.

    Returns
    -------
    groups : (rows * n_groups, group_size)
    scale : uint16 (rows * n_groups, 1 or 2)
    zero_point : uint8 (rows * n_groups, 1) or (0, 0)
        Views: what is written to them is written to `scales`.
    """
    scale, zero_point = scales
    groups = bits.reshape(-1, grid.group_size)
    zeros = np.empty((0, 0), np.uint8) if zero_point is None else zero_point.reshape(-1, 1)
    return groups, scale.reshape(len(groups), 2 if grid.scale_kind == SCALE_KINDS["float32"] else 1), zeros


@jit
def _store(values: np.ndarray, steps: float, kind: int, scale: np.ndarray) -> None:
    """Round float32 (rows, n_groups) to the bits of scales."""
    for row in range(values.shape[0]):
        for group in range(values.shape[1]):
            store_scale(scale, row, group, kind, round_scale(np.float64(values[row, group]), kind, steps))


def stored_scales(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Round scales chosen elsewhere to the dtype of a grid's, never zero and never so large that a code overflows.

    Parameters
    ----------
    values : float32 (rows, n_groups)
    grid : Grid

    Returns
    -------
    uint16 (rows, n_groups), twice as wide for float32 scales
    """
    rows, n_groups = values.shape
    scale, _ = new_scales(rows, n_groups * grid.group_size, grid)
    steps = np.ceil(divisor(grid.bits, grid.narrow)) if grid.symmetric else 2.0**grid.bits - 1.0
    _store(np.ascontiguousarray(values, np.float32), float(steps), grid.scale_kind, scale)
    return scale
