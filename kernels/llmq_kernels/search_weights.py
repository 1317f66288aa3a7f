"""What the errors of a group's elements weigh in a search for its scale.

After the importance matrices of llama.cpp: where the mean squares of the inputs are known, an error counts by the one
it meets; and large weights, which carry more of the output than an average input tells, count more than small ones.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmq_kernels.jit import jit
from llmq_kernels.lanes import LANES

__all__ = ["EVEN", "choose_weighing", "element_weight", "group_spread", "weigh_tile", "weights_reference"]

EVEN: Final = 0
"""All errors weigh the same."""

_MAGNITUDE: Final = 1  # more where weights are large
_ENERGY: Final = 2  # and by the energy of the inputs they meet

_MAGNITUDE_BITS: Final = (2, 3)
"""Bits at which errors of large weights count more where no energies are given: measured on a trained model, whose
divergence shrinks by 2 to 4 % at 3 and 2 bits and not at all at 4."""


def weights_reference(group: np.ndarray, bits: int, energy: np.ndarray | None = None) -> np.ndarray:
    """Specify what the errors of one group weigh, float64 (n,), but for a common factor.

    ``energy * sqrt(2 * mean(x**2) + x**2)``, with the energies of the inputs that the elements meet; without energies
    ``sqrt(2 * mean(x**2)) + |x|`` at 2 and 3 bits, and else the same for all.

    Examples
    --------
    >>> weights_reference(np.array([1.0, -1.0]), 2, np.array([1.0, 2.0])).round(3).tolist()
    [1.732, 3.464]
    """
    x = group.astype(np.float64)
    spread = 2.0 * np.mean(x**2)
    if energy is not None:
        return np.asarray(energy * np.sqrt(spread + x**2))
    return np.sqrt(spread) + np.abs(x) if bits in _MAGNITUDE_BITS else np.ones(x.shape)


@jit
def element_weight(x: Any, spread: Any, weighing: tuple[int, np.ndarray], place: int) -> Any:
    """What the error of one element weighs, the one at `place` along all rows, in a group of `group_spread`."""
    mode, energy = weighing
    if mode == EVEN:
        return np.float32(1.0)
    if mode == _MAGNITUDE:
        return np.sqrt(spread) + abs(x)
    return energy[place % energy.shape[0]] * np.sqrt(spread + x * x)


@jit
def group_spread(x: np.ndarray) -> Any:
    """Twice the mean square of some floats, summed in order."""
    total = x.dtype.type(0.0)
    for value in x:
        total += value * value
    return np.float32(2.0) * total / np.float32(x.shape[0])


@jit
def weigh_tile(tile: np.ndarray, place: tuple[int, int], weighing: tuple[int, np.ndarray], weights: np.ndarray) -> None:
    """Fill in what the errors of sixteen groups weigh.

    Parameters
    ----------
    tile : float32 (at least group_size, LANES)
        A group a lane; rows beyond the last element are zero.
    place : (first, group_size)
        Number of the group in the first lane, along all rows of the matrix.
    weighing
        Of `choose_weighing`.
    weights : float32, as the tile
        Written.
    """
    first, size = place
    mode, energy = weighing
    spread, column = np.zeros(LANES, np.float32), np.zeros(LANES, np.int64)
    for j in range(size):  # lane by lane in the order of `group_spread`
        for lane in range(LANES):
            spread[lane] += tile[j, lane] * tile[j, lane]
    for lane in range(LANES):
        spread[lane] = np.float32(2.0) * spread[lane] / np.float32(size)
        if mode == _ENERGY:
            column[lane] = (first + lane) * size % energy.shape[0]
    root = np.sqrt(spread)
    for j in range(tile.shape[0]):
        if j >= size:
            weights[j] = np.float32(0.0)
        elif mode == _ENERGY:
            for lane in range(LANES):
                x = tile[j, lane]
                weights[j, lane] = energy[column[lane] + j] * np.sqrt(spread[lane] + x * x)
        else:
            for lane in range(LANES):
                weights[j, lane] = root[lane] + abs(tile[j, lane]) if mode == _MAGNITUDE else np.float32(1.0)


def choose_weighing(bits: int, energy: np.ndarray | None, columns: int) -> tuple[int, np.ndarray]:
    """Check energies, and say what errors weigh in the words of the kernels above.

    Parameters
    ----------
    bits : int
    energy : float32 (columns,) or None
        Mean square of the inputs that each column meets.
    columns : int

    Returns
    -------
    (int, float32 (columns,) or (0,))
        Energies are brought below 1, which no comparison of errors sees.

    Raises
    ------
    ValueError
        Energies of another shape or dtype, negative ones, NaN or infinity.
    """
    if energy is None:
        return _MAGNITUDE if bits in _MAGNITUDE_BITS else EVEN, np.empty(0, np.float32)
    if energy.dtype != np.float32 or energy.shape != (columns,):
        raise ValueError(f"energy must be float32 ({columns},), not {energy.dtype} {energy.shape}")
    if not (np.isfinite(energy).all() and (energy >= 0).all()):
        raise ValueError("energy must be finite and not negative")
    return _ENERGY, np.ascontiguousarray(energy / (energy.max() or np.float32(1.0)))
