"""Weights that stay as they are on disk, packed or dense, and multiply from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import ml_dtypes
import numpy as np

from llmq.spec import QuantizedTensor
from llmq_kernels import matmul as kernel
from llmq_kernels.bundle import Bundle
from llmq_kernels.dense import matmul_dense
from llmq_kernels.floats import widen
from llmq_kernels.gather import gather

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Compute", "DenseLinear", "Fan", "Linear", "PackedLinear", "matmul"]

Compute = Literal["int8", "float32"]

_KINDS: Final[dict[np.dtype[Any], str]] = {
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.float16): "float16",
    np.dtype(np.float32): "float32",
}


class Linear(Protocol):
    """A weight `(out_features, in_features)` that multiplies activations, or gives rows of itself to an embedding."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        ...

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        ...

    @property
    def bias(self) -> np.ndarray | None:
        """What is added to each token's product, float32 (out_features,)."""
        ...

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Multiply float32 (tokens, in_features); the result is float32 (tokens, out_features)."""
        ...

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number, int64 (n,), as float32 (n, in_features)."""
        ...


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A quantized weight.

    Parameters
    ----------
    weight : QuantizedTensor
        Usually over a memory-mapped file.
    bias : float32 (out_features,) or None
    compute : {"int8", "float32"}
        Whether activations are quantized to int8 on the fly or kept exact.
    """

    weight: QuantizedTensor
    bias: np.ndarray | None = None
    compute: Compute = "int8"

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return self.weight.shape

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        matrix = self.weight.matrix
        return self.compute, *matrix.form, matrix.zero_point is None

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Multiply float32 (tokens, in_features); the result is float32 (tokens, out_features)."""
        return _add(kernel.matmul(x, self.weight.matrix, compute=self.compute, out=out), self.bias)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number, int64 (n,), as float32 (n, in_features)."""
        return gather(self.weight.matrix, ids)


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """A weight that is not quantized; it is widened to float32 inside the kernel, never as a whole.

    Parameters
    ----------
    weight : bfloat16, float16 or float32 (out_features, in_features)
        Usually over a memory-mapped file.
    bias : float32 (out_features,) or None

    Raises
    ------
    TypeError
        Another dtype.
    """

    weight: np.ndarray
    bias: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.weight.dtype not in _KINDS:
            raise TypeError(f"weight must be bfloat16, float16 or float32, not {self.weight.dtype}")

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        return (self.weight.dtype,)

    @property
    def _bits(self) -> np.ndarray:
        return self.weight if self.weight.dtype == np.float32 else self.weight.view(np.uint16)

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Multiply float32 (tokens, in_features); the result is float32 (tokens, out_features)."""
        return _add(matmul_dense(x, self._bits, _KINDS[self.weight.dtype], out=out), self.bias)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number, int64 (n,), as float32 (n, in_features)."""
        found: np.ndarray = self._bits[ids]
        return found if found.dtype == np.float32 else widen(found, _KINDS[self.weight.dtype])


class Fan:
    """Linears that read the same activations: packed ones of one form multiply in one go of the threads.

    Parameters
    ----------
    linears : sequence of Linear
        Of the same `in_features`.
    """

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = tuple(linears)
        together: dict[Any, list[int]] = {}
        for number, linear in enumerate(linears):
            matrix = linear.weight.matrix if isinstance(linear, PackedLinear) and linear.compute == "int8" else None
            served = matrix is not None and kernel.bundle_of(matrix) is not None
            form = (*matrix.form, matrix.zero_point is None) if matrix is not None and served else number
            together.setdefault(form, []).append(number)
        self._bundles: list[tuple[Bundle | None, list[int]]] = []
        for form, numbers in together.items():
            matrices = [linear.weight.matrix for n in numbers if isinstance(linear := linears[n], PackedLinear)]
            self._bundles.append((Bundle(matrices) if isinstance(form, tuple) else None, numbers))

    def __call__(self, x: np.ndarray, outs: Sequence[np.ndarray]) -> None:
        """Multiply float32 (tokens, in_features) by all weights.

        Parameters
        ----------
        x : float32 (tokens, in_features)
            C-contiguous.
        outs : sequence of float32 (tokens, out_features)
            C-contiguous; written, one for each linear.
        """
        for bundle, numbers in self._bundles:
            if bundle is None:
                self._linears[numbers[0]](x, out=outs[numbers[0]])
                continue
            bundle.multiply(x, [outs[n] for n in numbers])
            for n in numbers:
                _add(outs[n], self._linears[n].bias)


def _add(product: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is not None:
        product += bias
    return product


def matmul(x: np.ndarray, q: QuantizedTensor, *, compute: Compute = "int8") -> np.ndarray:
    """Multiply activations by a quantized weight, `x @ w.T`, straight from the packed codes.

    Parameters
    ----------
    x : float (..., in_features)
        Converted to float32; NaN and infinity give NaN or infinity, for their own row alone.
    q : QuantizedTensor
        A weight `(out_features, in_features)`.
    compute : {"int8", "float32"}
        Whether activations are quantized to int8 on the fly or kept exact.

    Returns
    -------
    float32 (..., out_features)

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other, or an unknown `compute`.
    """
    x = np.asarray(x)
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"q must be a QuantizedTensor, not {type(q).__name__}")
    if not np.can_cast(x.dtype, np.float32, "same_kind"):
        raise TypeError(f"x must be of numbers that float32 can hold, not {x.dtype}")
    rows, columns = q.shape
    if x.ndim == 0 or x.shape[-1] != columns:
        raise ValueError(f"x must have shape (..., {columns}), not {x.shape}")
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        flat = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, columns)
    return kernel.matmul(flat, q.matrix, compute=compute).reshape(*x.shape[:-1], rows)
