"""Scales and zero points that a few large errors pull at less: half-quadratic splitting, after HQQ.

H. Badri and A. Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (Mobius Labs, 2023). Errors count
as `|e|**p` with `p < 1`. A second variable takes the large ones on, and what is left is a least-squares problem with a
closed solution; both take turns. HQQ moves a zero point of floating point alone. Here zero points are codes, so that
the scale is fitted too. With `p = 3/4` the powers are square roots, which are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.floats import round_scale, scale_value, source_bits, store_scale
from llmq_kernels.jit import jit
from llmq_kernels.quantize_rows import zero_of
from llmq_kernels.ranges import group_views, range_scales
from llmq_kernels.widening import widen_run

if TYPE_CHECKING:
    from llmq_kernels.layout import Grid

__all__ = ["half_quadratic_reference", "half_quadratic_scales"]

_ITERATIONS: Final = 20
_BETA: Final = 10.0
_KAPPA: Final = 1.01
_AT_ONCE: Final = 1 << 18
"""Weights between two moments at which Ctrl-C is heard: an eighth of a second on one thread."""

_LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)


def half_quadratic_reference(group: np.ndarray, grid: Grid, start: tuple[float, float]) -> tuple[float, float]:
    """Specify the scale and zero point of one group, float64 (n,), from those it starts with, in plain NumPy.

    With ``c = clamp(round(x / s + z))`` and the error ``d = x / s - (c - z)``, in steps, each turn takes
    ``e = sign(d) * max(|d| - |d|**(p-1) / beta, 0)`` out, moves the zero point of an asymmetric grid to
    ``mean(c - x / s + e)``, fits the scale to ``x - s * e``, and raises `beta`. The pair that, rounded as it is stored,
    leaves the least ``sum(|x - s * (c - z)|**p)`` is kept.

    Examples
    --------
    >>> from llmq_kernels.layout import Grid
    >>> half_quadratic_reference(np.array([-1.0, 1.0, 0.0, 1.9]), Grid(2, 4), (1.0, 2.0))
    (1.0, 2.0)
    """
    lowest, highest = float(grid.narrow), 2.0**grid.bits - 1.0
    s, z = start
    best, least, beta = start, np.inf, _BETA
    for _ in range(_ITERATIONS):
        stored = (
            float(round_scale(s, grid.scale_kind)),
            z if grid.symmetric else float(np.clip(np.rint(z), 0.0, highest)),
        )
        loss = float((np.abs(group - _nearest(group, *stored, lowest, highest)[1]) ** 0.75).sum())
        if loss < least:
            best, least = stored, loss
        codes, values = _nearest(group, s, z, lowest, highest)
        d = (group - values) / s
        with np.errstate(divide="ignore"):
            e = np.sign(d) * np.maximum(np.abs(d) - np.abs(d) ** -0.25 / beta, 0.0)
        if not grid.symmetric:
            z = float(np.mean(codes - group / s + e))
        centred = codes - z
        s = float(((group - s * e) * centred).sum() / (centred**2).sum()) if centred.any() else s
        beta *= _KAPPA
    return best


def _nearest(x: np.ndarray, s: float, z: float, lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    codes = np.clip(np.rint(x / s + z), lowest, highest)
    return codes, s * (codes - z)


@jit
def _loss(x: np.ndarray, s: Any, z: Any, span: tuple[Any, Any]) -> Any:
    """Sum of ``|x - s * (c - z)|**(3/4)``."""
    total = 0.0
    for value in x:
        off = abs(value - s * (min(max(np.rint(value / s + z), span[0]), span[1]) - z))
        total += np.sqrt(off * np.sqrt(off))
    return total


@jit
def _turn(x: np.ndarray, s: Any, z: Any, span: tuple[Any, Any], case: tuple[bool, float]) -> tuple[Any, Any]:
    """One turn: the next scale and zero point; `case` is whether the zero point is fixed, and `beta`."""
    fixed, beta = case
    moved = 0.0
    for value in x:
        ratio = value / s
        code = min(max(np.rint(ratio + z), span[0]), span[1])
        moved += code - ratio + _taken(ratio - (code - z), beta)
    after = z if fixed else moved / x.shape[0]
    top = bottom = 0.0
    for value in x:
        ratio = value / s
        code = min(max(np.rint(ratio + z), span[0]), span[1])
        centred = code - after
        top += (value - s * _taken(ratio - (code - z), beta)) * centred
        bottom += centred * centred
    return (top / bottom if bottom > 0.0 else s), after


@jit
def _taken(d: Any, beta: Any) -> Any:
    """What of an error, in steps, the second variable takes on."""
    size = abs(d)
    if size == 0.0:
        return 0.0
    left = size - 1.0 / (np.sqrt(np.sqrt(size)) * beta)
    return np.sign(d) * max(left, 0.0)


@jit(parallel=True)
def _split(
    groups: np.ndarray, form: tuple[int, int, int], source_kind: int, scale: np.ndarray, zero_point: np.ndarray
) -> None:
    """Better the scales and zero points of the bits of floats (groups, group_size); `form` is bits, narrow, kind."""
    bits, narrow, kind = form
    size = groups.shape[1]
    span = np.float64(narrow), np.float64((1 << bits) - 1)
    fixed = zero_point.shape[0] == 0
    for group in numba.prange(groups.shape[0]):
        narrow_x = np.empty(size, np.float32)
        widen_run(groups, source_kind, (group, 0, size), narrow_x)
        x = narrow_x.astype(np.float64)
        s, z = np.float64(scale_value(scale, group, 0, kind)), np.float64(zero_of(zero_point, group, 0, bits))
        best_s, best_z, least, beta = s, z, np.inf, _BETA
        for _ in range(_ITERATIONS):
            stored = np.float64(round_scale(s, kind))
            code = z if fixed else min(max(np.rint(z), 0.0), span[1])
            loss = _loss(x, stored, code, span)
            if loss < least and stored * span[1] <= _LARGEST_FLOAT:
                best_s, best_z, least = stored, np.float64(code), loss
            s, z = _turn(x, s, z, span, (fixed, beta))
            if not s > 0.0:
                break
            beta *= _KAPPA
        store_scale(scale, group, 0, kind, np.float32(best_s))
        if not fixed:
            zero_point[group, 0] = np.uint8(best_z)


def half_quadratic_scales(weight: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose scales and zero points that leave the least ``sum(|error|**(3/4))`` that half-quadratic splitting finds.

    It starts from those of `range_scales`; scales stay positive. Results are the same for any number of threads.

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
    bits, source_kind = source_bits("weight", weight)
    scale, zero_point = range_scales(weight, grid)
    groups, flat, zeros = group_views(bits, grid, (scale, zero_point))
    step = max(1, _AT_ONCE // max(1, groups.shape[1]))
    for start in range(0, groups.shape[0], step):
        part = slice(start, start + step)
        _split(groups[part], (grid.bits, int(grid.narrow), grid.scale_kind), source_kind, flat[part], zeros[part])
    return scale, zero_point
