"""A table of vectors, of which some are looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmq.integer.weights import LayerWeight, quantize_weight, weight_array
from llmq_kernels.pack import unpack

if TYPE_CHECKING:
    from typing import Self

    from llmq.spec import QuantSpec

__all__ = ["Embedding"]


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of a packed table by number, widened to float32; made by `Embedding.quantize`.

    Parameters
    ----------
    weight : LayerWeight
        (num_embeddings, embedding_dim)
    """

    weight: LayerWeight

    def __post_init__(self) -> None:
        if len(self.weight.shape) != 2:
            raise ValueError(f"weight must have shape (num_embeddings, embedding_dim), not {self.weight.shape}")

    @classmethod
    def quantize(cls, weight: np.ndarray, spec: QuantSpec) -> Self:
        """Quantize a table, float (num_embeddings, embedding_dim); ValueError if it is none, or not finite."""
        weight = weight_array(weight)
        if weight.ndim != 2:
            raise ValueError(f"weight must have shape (num_embeddings, embedding_dim), not {weight.shape}")
        return cls(quantize_weight(weight, spec))

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Look up rows: integers of any shape to float32 (..., embedding_dim).

        Raises
        ------
        TypeError, IndexError
            Not integers, or beyond the table.
        """
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids must be integers, not {ids.dtype}")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.weight.rows:
            raise IndexError(f"ids must be 0 to {self.weight.rows - 1}, found {int(ids.min())} to {int(ids.max())}")
        rows = ids.reshape(-1)
        found = [self._part(i, rows) for i in range(len(self.weight.parts))]
        return np.concatenate(found, axis=1).reshape(*ids.shape, self.weight.shape[1])

    reference = __call__

    def _part(self, number: int, rows: np.ndarray) -> np.ndarray:
        part = self.weight.parts[number]
        factor, offset = part.form()
        codes = unpack(np.ascontiguousarray(part.packed[rows]), part.bits, part.columns).astype(np.int32)
        integers = factor * codes - offset[rows, None]
        return np.asarray(integers * self.weight.scale[rows, number, None], np.float32)
