"""What the doors of kernels share: checks, and arrays brought to the one form that kernels are compiled for."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["frozen", "matrix_of", "output_of"]


def frozen(array: np.ndarray) -> np.ndarray:
    """Make a read-only view, so that mapped files and fresh arrays have the same Numba type."""
    view = array.view()
    view.flags.writeable = False
    return view


def matrix_of(name: str, array: Any, dtype: type, columns: int | None = None) -> np.ndarray:
    """`array` as a read-only, C-contiguous, aligned matrix of `dtype`, copied only if it must be.

    Raises
    ------
    TypeError
        Not an array of `dtype`, nor one that converts to it without loss of kind (float64 to float32 does).
    ValueError
        Not two-dimensional, or not of `columns` columns.
    """
    if type(array) is np.ndarray and array.dtype == dtype and array.ndim == 2:
        flags = array.flags
        if flags.c_contiguous and flags.aligned and (columns is None or array.shape[1] == columns):
            return frozen(array)  # what nearly every call comes to
    array = np.asarray(array)
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    if array.ndim != 2 or (columns is not None and array.shape[1] != columns):
        width = "columns" if columns is None else columns
        raise ValueError(f"{name} must have shape (rows, {width}), not {array.shape}")
    # No explicit read-only requirement: NumPy would copy.
    return frozen(np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"]))


def output_of(out: np.ndarray | None, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """`out` if it is a writable C-contiguous array of `shape` and `dtype`, or a new one if it is None.

    Raises
    ------
    ValueError
        It does not fit.
    """
    if out is None:
        return np.empty(shape, dtype)
    flags = out.flags
    if out.shape != shape or out.dtype != dtype or not (flags.c_contiguous and flags.aligned and flags.writeable):
        wanted = f"a writable C-contiguous {np.dtype(dtype)} array of shape {shape}"
        raise ValueError(f"out must be {wanted}, not {out.dtype} of shape {out.shape}")
    return out
