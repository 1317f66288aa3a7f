"""What the doors of kernels share: checks, arrays in the one form that kernels are compiled for, and work in pieces."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["frozen", "matrix_of", "numbers_of", "output_of", "pieces", "vector_of"]

_LEAST: Final = 8
"""Items of a piece: of fewer the work on each is slower, and of a few tokens sums have another order."""


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


def pieces(count: int, cost: int, most: int) -> list[slice]:
    """Cut work into calls that are short enough for Ctrl-C, which Python serves between them.

    Parameters
    ----------
    count, cost : int
        Items, at least one, and products of each.
    most : int
        Products of a piece, about; but it has 8 items at least, unless there are fewer.

    Returns
    -------
    list of slice
        Pieces of nearly equal size, one after the other.

    Examples
    --------
    >>> pieces(30, 100, 1000)
    [slice(0, 10, None), slice(10, 20, None), slice(20, 30, None)]
    >>> pieces(30, 1000, 1000)
    [slice(0, 10, None), slice(10, 20, None), slice(20, 30, None)]
    """
    number = max(1, min(-(-count * cost // most), count // _LEAST))
    return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]


def numbers_of(name: str, values: Any, count: int, dtype: type) -> np.ndarray:
    """Values, one or one for each of `count`, as a read-only vector of `dtype` that is as long as they are many.

    Raises
    ------
    TypeError, ValueError
        Neither, or of another kind.
    """
    found = np.asarray(values)
    if found.dtype == dtype and found.shape in ((), (count,)) and found.flags.c_contiguous:
        return frozen(found.reshape(-1))  # what nearly every call comes to
    if not np.can_cast(found.dtype, dtype, casting="same_kind"):
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {found.dtype}")
    if found.shape not in ((), (1,), (count,)):
        raise ValueError(f"{name} must be one number or have shape ({count},), not {found.shape}")
    return frozen(np.ascontiguousarray(found, dtype).reshape(-1))


def vector_of(name: str, values: Any, count: int, dtype: type) -> np.ndarray:
    """`numbers_of`, as many as `count`."""
    found = numbers_of(name, values, count, dtype)
    return found if found.size == count else frozen(np.full(count, found, dtype))
