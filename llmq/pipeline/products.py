"""Linears for many tokens at once: rows of a weight are widened, some at a time, and multiplied by NumPy's BLAS.

Calibration reads thousands of tokens at a time, for which a library's product is the fastest there is; the kernels of
the runtime are made for few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.runtime.linear import DenseLinear, PackedLinear
from llmq_kernels.layout import PackedMatrix
from llmq_kernels.quantize import dequantize

if TYPE_CHECKING:
    from llmq.runtime.linear import Linear

__all__ = ["LinearAround", "PanelLinear"]

_ELEMENTS: Final = 4 << 20
"""Elements of a weight that are widened at a time."""


@dataclass(frozen=True, eq=False)
class LinearAround:
    """A linear that stands for another one; how it multiplies is left to those who derive from it.

    Parameters
    ----------
    linear : Linear
    """

    linear: Linear

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.linear.shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        return self.linear.kind

    @property
    def bias(self) -> np.ndarray | None:
        """As of the linear."""
        return self.linear.bias

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number, int64 (n,), as float32 (n, in_features)."""
        return self.linear.rows(ids)


@dataclass(frozen=True, eq=False)
class PanelLinear(LinearAround):
    """A linear, dense or packed, whose activations stay exact."""

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Multiply float32 (tokens, in_features); the result is float32 (tokens, out_features)."""
        rows, columns = self.shape
        y = np.empty((x.shape[0], rows), np.float32) if out is None else out
        step = max(1, _ELEMENTS // columns)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            y[:, part] = x @ self._wide(part).T
        if self.bias is not None:
            y += self.bias
        return y

    def _wide(self, part: slice) -> np.ndarray:
        """Some rows in float32."""
        linear = self.linear
        if isinstance(linear, PackedLinear):
            m = linear.weight.matrix
            zeros = None if m.zero_point is None else m.zero_point[part]
            rows = PackedMatrix(m.packed[part], m.scale[part], zeros, m.bits, m.group_size, m.columns, m.scale_kind)
            return dequantize(rows)
        assert isinstance(linear, DenseLinear)
        return linear.rows(np.arange(part.start, part.stop))
