"""Layers without weights that keep the scale of what they get: ReLU, pooling, flatten."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from llmq.integer.activations import Quantized

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AdaptiveAvgPool2d", "AvgPool2d", "Flatten", "MaxPool2d", "ReLU"]


@dataclass(frozen=True)
class ReLU:
    """``max(x, 0)``: of integers, the codes below the zero point become it."""

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer, on any shape."""
        if isinstance(x, Quantized):
            return x.with_codes(np.maximum(x.codes, x.spread_zero_point().astype(np.int8)))
        return np.asarray(np.maximum(x, np.float32(0.0)))


@dataclass(frozen=True)
class Flatten:
    """Make one axis of all axes from `start_dim` on."""

    start_dim: int = 1

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer, (n, ...) to (n, product)."""
        values = x.codes if isinstance(x, Quantized) else np.asarray(x)
        before = values.shape[: self.start_dim]
        # Of nothing, -1 would leave the size open.
        flat = values.reshape(*before, prod(values.shape[len(before) :]))
        return x.with_codes(flat) if isinstance(x, Quantized) else flat


@dataclass(frozen=True)
class _Pool2d:
    """Makes one value of each window of images.

    Parameters
    ----------
    kernel_size : int or pair
    stride : int, pair or None
        That of `kernel_size` if None.
    padding : int or pair
        At most half of the kernel.

    Raises
    ------
    ValueError
        Numbers out of range.
    """

    kernel_size: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    padding: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        kernel, stride, padding = self.sizes
        if min(kernel) < 1 or min(stride) < 1:
            raise ValueError(f"kernel_size and stride must be at least 1, not {kernel} and {stride}")
        if any(not 0 <= 2 * p <= k for p, k in zip(padding, kernel, strict=True)):
            raise ValueError(f"padding must be 0 up to half of the kernel {kernel}, not {padding}")

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Kernel, stride and padding as pairs."""
        kernel = _pair(self.kernel_size)
        return kernel, kernel if self.stride is None else _pair(self.stride), _pair(self.padding)

    def _reduced(self, x: np.ndarray, fill: float, combine: np.ufunc) -> np.ndarray:
        """Combine the elements of each window of images, one place of the windows at a time."""
        (kh, kw), (sh, sw), (ph, pw) = self.sizes
        if x.ndim != 4 or x.shape[2] + 2 * ph < kh or x.shape[3] + 2 * pw < kw:
            raise ValueError(
                f"x must have shape (n, channels, height, width) and hold windows of {kh, kw}, not {x.shape}"
            )
        padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill) if ph or pw else x
        rows, columns = (padded.shape[2] - kh) // sh + 1, (padded.shape[3] - kw) // sw + 1
        total: np.ndarray | None = None
        for i, j in np.ndindex(kh, kw):
            part = padded[:, :, i : i + (rows - 1) * sh + 1 : sh, j : j + (columns - 1) * sw + 1 : sw]
            total = part.copy() if total is None else combine(total, part, out=total)
        assert total is not None
        return total


@dataclass(frozen=True)
class MaxPool2d(_Pool2d):
    """The largest value of each window of images; what is padded counts as less than everything.

    Parameters
    ----------
    kernel_size, stride, padding
        In pixels: numbers or pairs. The stride is the kernel's size if None, the padding at most half of it.
    """

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer, (n, channels, height, width)."""
        if isinstance(x, Quantized):
            return x.with_codes(self._reduced(x.codes, -128, np.maximum))
        return self._reduced(np.asarray(x, np.float32), -np.inf, np.maximum)


@dataclass(frozen=True)
class AvgPool2d(_Pool2d):
    """The mean of each window of images, padded zeros included.

    Of integers, ``zero_point + round(sum of (code - zero_point) / area)``, halves to even.

    Parameters
    ----------
    kernel_size, stride, padding
        As for `MaxPool2d`.
    """

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer, (n, channels, height, width)."""
        area = prod(self.sizes[0])
        if isinstance(x, Quantized):
            return _average(x, self._reduced(x.centred(), 0, np.add), area)
        return np.asarray(self._reduced(np.asarray(x, np.float32), 0.0, np.add) / np.float32(area))


@dataclass(frozen=True)
class AdaptiveAvgPool2d:
    """The mean of each channel of images; rounds integers as `AvgPool2d` does.

    Parameters
    ----------
    output_size : int or pair
        1: no other size is served.
    """

    output_size: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        if _pair(self.output_size) != (1, 1):
            raise ValueError(f"output_size must be 1, not {self.output_size}: one mean a channel")

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer, (n, channels, height, width) to (n, channels, 1, 1)."""
        values = x if isinstance(x, Quantized) else np.asarray(x, np.float32)
        shape = values.shape
        if len(shape) != 4 or shape[2] * shape[3] == 0:
            raise ValueError(f"x must have shape (n, channels, height, width) and hold pixels, not {shape}")
        if isinstance(values, Quantized):
            sums = values.centred().sum(axis=(2, 3), keepdims=True, dtype=np.int32)
            return _average(values, sums, shape[2] * shape[3])
        return np.asarray(values.mean(axis=(2, 3), keepdims=True, dtype=np.float32))


def _average(x: Quantized, sums: np.ndarray, area: int) -> Quantized:
    """Divide int32 (n, channels, ...) sums of centred codes."""
    whole, rest = np.divmod(sums, area)
    whole += (2 * rest > area) | ((2 * rest == area) & (whole % 2 == 1))
    return x.with_codes((whole + x.spread_zero_point()).clip(*x.limits).astype(np.int8))


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    sizes = np.atleast_1d(size)
    if sizes.shape not in ((1,), (2,)) or sizes.dtype.kind not in "iu":
        raise ValueError(f"a size is one whole number or two, not {size!r}")
    return int(sizes[0]), int(sizes[-1])
