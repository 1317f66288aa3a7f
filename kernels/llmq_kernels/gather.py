"""Rows of a packed matrix by number: the embedding look-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq_kernels.doors import frozen
from llmq_kernels.jit import jit
from llmq_kernels.quantize import dequantize_columns

if TYPE_CHECKING:
    from llmq_kernels.layout import PackedMatrix

__all__ = ["gather"]


@jit
def _gather(
    packed: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    form: tuple[int, int, int],
    ids: np.ndarray,
    out: np.ndarray,
) -> None:
    """Widen rows `ids`, int64 (n,), to float32 (n, columns); `form` is (bits, group_size, scale_kind)."""
    columns = out.shape[1]
    codes = np.empty(columns, np.uint8)
    for i in range(ids.size):
        dequantize_columns(packed, scale, zero_point, form, (ids[i], 0, columns), codes, out, i)


def gather(matrix: PackedMatrix, ids: np.ndarray) -> np.ndarray:
    """Widen some rows of a packed matrix.

    Parameters
    ----------
    matrix : PackedMatrix
    ids : int (n,)
        Row numbers, in any order, repeated or not; the same rows as `dequantize(matrix)[ids]`.

    Returns
    -------
    float32 (n, columns)

    Raises
    ------
    TypeError
        Ids are not integers.
    ValueError
        Ids are not one-dimensional, or one is negative or too large.
    """
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, not of shape {ids.shape}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < matrix.rows:
        raise ValueError(f"ids must be 0 to {matrix.rows - 1}, found {int(ids.min())} to {int(ids.max())}")
    out = np.empty((ids.size, matrix.columns), np.float32)
    form = (matrix.bits, matrix.group_size, matrix.scale_kind)
    numbers = frozen(np.require(ids, np.int64, ["C_CONTIGUOUS", "ALIGNED"]))
    _gather(matrix.packed_view, matrix.scale_view, matrix.zero_point_view, form, numbers, out)
    return out
