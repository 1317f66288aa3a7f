"""Convolutions of integers; every filter has a range of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from llmq.integer.activations import Quantized
from llmq.integer.product import ProductLayer, quantized_parts
from llmq.integer.weights import weight_array
from llmq.spec import QuantScheme
from llmq_kernels.convolution import Convolution, integer_convolve, integer_convolve_reference
from llmq_kernels.integer_layers import convolution_layer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self, Unpack

    from llmq.integer.product import Grids
    from llmq.integer.weights import LayerWeight
    from llmq_kernels.integer_layers import InputGrid, RowScales

__all__ = ["Conv1d", "Conv2d", "Geometry", "convolution_of", "convolve_floats", "flat_geometry"]


class Geometry(TypedDict, total=False):
    """Where filters meet their input; numbers count for both axes of images."""

    stride: int | Sequence[int]
    padding: int | Sequence[int]
    dilation: int | Sequence[int]
    groups: int


@dataclass(frozen=True, eq=False)
class Conv2d(ProductLayer):
    """A convolution (n, channels, height, width) to (n, filters, height, width), made by `Conv2d.quantize`.

    Parameters
    ----------
    weight, bias, grids
        See `ProductLayer`; the weight has shape (filters, channels / groups, kernel height, kernel width).
    geometry : Convolution

    Raises
    ------
    ValueError
        As for `ProductLayer`, or a geometry of other filters.
    """

    geometry: Convolution

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight.shape[2:] != self.geometry.kernel or self.weight.rows % self.geometry.groups:
            raise ValueError(f"filters of shape {self.weight.shape} do not fit {self.geometry}")

    @classmethod
    def quantize(
        cls,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        scheme: QuantScheme | None = None,
        *,
        input_range: tuple[float, float] | None = None,
        output_range: tuple[float, float] | None = None,
        **geometry: Unpack[Geometry],
    ) -> Self:
        """Quantize a layer.

        Parameters
        ----------
        weight : float (filters, channels / groups, kernel height, kernel width)
        bias : float (filters,), optional
        scheme : QuantScheme, optional
            `QuantScheme()` if none.
        input_range, output_range : (float, float), optional
            As for `Linear.quantize`.
        **geometry
            `stride` (1), `padding` (0), `dilation` (1), each a number or a pair, and `groups` (1).

        Raises
        ------
        ValueError
            Arrays, ranges or a geometry that do not fit each other or the scheme.
        """
        weight = weight_array(weight)
        if weight.ndim != 4:
            raise ValueError(f"weight must have shape (filters, channels, height, width), not {weight.shape}")
        _check_scheme(scheme)
        place = convolution_of(weight.shape, geometry)
        parts = quantized_parts(weight, bias, scheme or QuantScheme(), (input_range, output_range))
        return cls(*parts, place)

    @classmethod
    def of(cls, weight: LayerWeight, bias: np.ndarray | None, grids: Grids, **geometry: Unpack[Geometry]) -> Self:
        """Make a layer of what is quantized already; see `LayerWeight.of` and, for the geometry, `quantize`."""
        if len(weight.shape) != 4 or len(weight.parts) > 1:
            raise ValueError(f"a weight (filters, channels, height, width) in one group is needed, not {weight.shape}")
        return cls(weight, bias, grids, convolution_of(weight.shape, geometry))

    def _run(self, x: np.ndarray | Quantized, *, reference: bool) -> np.ndarray | Quantized:
        channels = self.weight.shape[1] * self.geometry.groups
        if len(x.shape) != 4 or x.shape[1] != channels:
            raise ValueError(f"x must have shape (n, {channels}, height, width), not {x.shape}")
        return super()._run(x, reference=reference)

    def _sums(self, x: Quantized, part: int, *, reference: bool) -> np.ndarray:
        weight = self.weight.parts[part]
        if reference:
            return integer_convolve_reference(x.codes, weight, self.geometry, x.zero_point)
        return integer_convolve(x.codes, weight, self.geometry, x_zero_point=x.zero_point)

    def _layer(self, x: np.ndarray, grid: InputGrid, scales: RowScales) -> np.ndarray:
        return convolution_layer(x, self.weight.parts[0], self.geometry, grid, scales)

    def _multiply_floats(self, x: np.ndarray) -> np.ndarray:
        return convolve_floats(x, self.weight.values, self.geometry)


@dataclass(frozen=True, eq=False)
class Conv1d:
    """A convolution (n, channels, length) to (n, filters, length): one of images of height 1.

    Parameters
    ----------
    images : Conv2d
    """

    images: Conv2d

    @classmethod
    def quantize(
        cls,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        scheme: QuantScheme | None = None,
        *,
        input_range: tuple[float, float] | None = None,
        output_range: tuple[float, float] | None = None,
        **geometry: Unpack[Geometry],
    ) -> Self:
        """Quantize a layer: weight (filters, channels / groups, kernel); else as `Conv2d.quantize`."""
        weight = weight_array(weight)
        if weight.ndim != 3:
            raise ValueError(f"weight must have shape (filters, channels, length), not {weight.shape}")
        ranges = input_range, output_range
        _check_scheme(scheme)
        place = convolution_of(weight[:, :, None].shape, flat_geometry(geometry))
        parts = quantized_parts(weight[:, :, None], bias, scheme or QuantScheme(), ranges)
        return cls(Conv2d(*parts, place))

    @classmethod
    def of(cls, weight: LayerWeight, bias: np.ndarray | None, grids: Grids, **geometry: Unpack[Geometry]) -> Self:
        """Make a layer of what is quantized already: a weight (filters, channels / groups, kernel)."""
        if len(weight.shape) != 3:
            raise ValueError(f"weight must have shape (filters, channels, length), not {weight.shape}")
        filters, channels, length = weight.shape
        images = replace(weight, shape=(filters, channels, 1, length))
        return cls(Conv2d.of(images, bias, grids, **flat_geometry(geometry)))

    @property
    def weight(self) -> LayerWeight:
        """The weight, as that of images of height 1."""
        return self.images.weight

    @property
    def bias(self) -> np.ndarray | None:
        """The bias."""
        return self.images.bias

    @property
    def grids(self) -> Grids:
        """How activations become integers."""
        return self.images.grids

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run the layer; see `ProductLayer`."""
        return _drop_height(self.images(_add_height(x)))

    def reference(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Specify the layer in plain NumPy."""
        return _drop_height(self.images.reference(_add_height(x)))

    def integer_forward(self, x: Quantized) -> np.ndarray:
        """Sums of products without the bias, int32 (n, filters, length)."""
        return self.images.integer_forward(x.with_codes(x.codes[:, :, None]))[:, :, 0]


def _add_height(x: np.ndarray | Quantized) -> np.ndarray | Quantized:
    x = x if isinstance(x, Quantized) else np.asarray(x)
    if len(x.shape) != 3:
        raise ValueError(f"x must have shape (n, channels, length), not {x.shape}")
    return x.with_codes(x.codes[:, :, None]) if isinstance(x, Quantized) else x[:, :, None]


def _drop_height(y: np.ndarray | Quantized) -> np.ndarray | Quantized:
    return y.with_codes(y.codes[:, :, 0]) if isinstance(y, Quantized) else y[:, :, 0]


def _one(name: str, size: Any) -> int:
    sizes = np.atleast_1d(size)
    if sizes.shape != (1,) or sizes.dtype.kind not in "iu":
        raise ValueError(f"{name} must be one whole number, not {size!r}")
    return int(sizes[0])


def _check_scheme(scheme: QuantScheme | None) -> None:
    if isinstance(scheme, QuantScheme) and scheme.weight.strategy == "group" and scheme.weight.group_size != -1:
        raise ValueError("filters have a range each (strategy channel) or one for all (tensor), not one a group")


def flat_geometry(geometry: Geometry) -> Geometry:
    """Make of a geometry along one axis that of images of height 1."""
    stride, dilation = (_one(name, geometry.get(name, 1)) for name in ("stride", "dilation"))
    padding = _one("padding", geometry.get("padding", 0))
    return {
        "stride": (1, stride),
        "padding": (0, padding),
        "dilation": (1, dilation),
        "groups": geometry.get("groups", 1),
    }


def convolution_of(shape: tuple[int, ...], geometry: Geometry) -> Convolution:
    """Make the kernels' view of a geometry, for a weight (filters, channels / groups, height, width).

    Raises
    ------
    ValueError
        Numbers out of range, or filters that do not make the groups.
    """
    sizes = {
        "stride": _pair("stride", geometry.get("stride", 1)),
        "padding": _pair("padding", geometry.get("padding", 0)),
        "dilation": _pair("dilation", geometry.get("dilation", 1)),
    }
    groups = _one("groups", geometry.get("groups", 1))
    found = Convolution((shape[2], shape[3]), groups=groups, **sizes)
    if shape[0] % groups:
        raise ValueError(f"{shape[0]} filters do not make {groups} groups")
    return found


def _pair(name: str, size: Any) -> tuple[int, int]:
    sizes = np.atleast_1d(size)
    if sizes.shape not in ((1,), (2,)) or sizes.dtype.kind not in "iu":
        raise ValueError(f"{name} must be one whole number or two, not {size!r}")
    return int(sizes[0]), int(sizes[-1])


def convolve_floats(x: np.ndarray, weight: np.ndarray, geometry: Convolution) -> np.ndarray:
    """Convolve float32 (n, channels, height, width) with float32 (filters, channels / groups, kernel).

    Raises
    ------
    ValueError
        A shape that does not fit.
    """
    expected = weight.shape[1] * geometry.groups
    if x.ndim != 4 or x.shape[1] != expected:
        raise ValueError(f"x must have shape (n, {expected}, height, width), not {x.shape}")
    n, channels, height, width = x.shape
    rows, columns = geometry.output_size(height, width)
    (ph, pw), (dh, dw), (sh, sw) = geometry.padding, geometry.dilation, geometry.stride
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    reach = tuple(d * (k - 1) + 1 for k, d in zip(geometry.kernel, geometry.dilation, strict=True))
    # (n, channels, rows, columns, kernel height, kernel width)
    windows = sliding_window_view(padded, reach, axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    groups = geometry.groups
    split = windows.reshape(n, groups, channels // groups, rows, columns, *geometry.kernel)
    per_group = weight.shape[0] // groups
    filters = weight.reshape(groups, per_group, -1)
    patches = split.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, n * rows * columns, filters.shape[2])
    out = (patches @ filters.transpose(0, 2, 1)).reshape(groups, n, rows, columns, per_group)
    return np.ascontiguousarray(out.transpose(1, 0, 4, 2, 3).reshape(n, weight.shape[0], rows, columns))
