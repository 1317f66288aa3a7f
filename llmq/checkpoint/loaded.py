"""Tensors read whole into memory, for those who work on a part of a checkpoint at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES

if TYPE_CHECKING:
    from llmq.checkpoint.source import Source

__all__ = ["LoadedCheckpoint"]


class LoadedCheckpoint:
    """Arrays read from a source, one at a time; it keeps none of them.

    Read, not mapped: a file that becomes shorter while it is mapped ends the process.

    Parameters
    ----------
    source : Source
        Open, with its headers checked.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor.

        Raises
        ------
        KeyError
            No such tensor.
        InputError
            It cannot be read.
        """
        info = self.source.tensors[name]
        array = np.empty(info.shape, NUMPY_DTYPES[info.dtype])
        if array.nbytes:
            self.source.read_into(info, 0, array.reshape(-1).view(np.uint8).data)
        return array

    def rows(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Read some rows of a matrix, int64 (n,), into an array (n, columns), each row once."""
        info = self.source.tensors[name]
        wanted, places = np.unique(ids, return_inverse=True)
        table = np.empty((wanted.size, info.shape[1]), NUMPY_DTYPES[info.dtype])
        for row, number in zip(table, wanted.tolist(), strict=True):
            self.source.read_into(info, number * row.nbytes, row.view(np.uint8).data)
        return table[places]
