"""Convolutions of int8 inputs with packed integers, summed exactly in 32 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numba
import numpy as np

from llmq_kernels.convolution_product import convolve_images
from llmq_kernels.doors import frozen, output_of
from llmq_kernels.integer import zero_points_of
from llmq_kernels.jit import call, jit, jit_enabled
from llmq_kernels.pack import unpack_columns
from llmq_kernels.row_forms import RowForms

if TYPE_CHECKING:
    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["Convolution", "integer_convolve", "integer_convolve_reference"]

_PARALLEL: Final = 1 << 18
"""Products from which waking the threads pays."""


@dataclass(frozen=True)
class Convolution:
    """Where the filters of a convolution meet its input; pairs are (height, width), in pixels.

    Parameters
    ----------
    kernel : (int, int)
        Of a filter.
    stride, dilation : (int, int)
        From one place of a filter to the next, and from one of its elements to the next.
    padding : (int, int)
        True zeros on either side.
    groups : int
        Parts of the channels that meet filters of their own; as many as channels: depthwise.

    Raises
    ------
    ValueError
        A number out of range.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < least:
                raise ValueError(f"{name} must be two numbers of at least {least}, not {pair}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, not {self.groups}")

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output.

        Examples
        --------
        >>> Convolution((3, 3), stride=(2, 2), padding=(1, 1)).output_size(224, 224)
        (112, 112)

        Raises
        ------
        ValueError
            A filter does not fit the padded input.
        """
        sizes = []
        for i, size in enumerate((height, width)):
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            left = size + 2 * self.padding[i] - reach
            if left < 0:
                raise ValueError(f"a filter that reaches {reach} does not fit {size} and padding {self.padding[i]}")
            sizes.append(left // self.stride[i] + 1)
        return sizes[0], sizes[1]


def integer_convolve_reference(
    x: np.ndarray, weight: IntegerWeight, geometry: Convolution, x_zero_point: np.ndarray | int = 0
) -> np.ndarray:
    """Specify `integer_convolve` in plain NumPy, in int64: one element of the filters at a time.

    Examples
    --------
    >>> from llmq_kernels.integer_weight import IntegerWeight
    >>> weight = IntegerWeight.of(np.array([[3, 1, 2]], np.uint8), 2)
    >>> x = np.array([[[[1, 5, -2, 4]]]], np.int8)
    >>> integer_convolve_reference(x, weight, Convolution((1, 3), padding=(0, 1)), 1).tolist()
    [[[[0, -4, 7, -6]]]]
    """
    n, channels, height, width = x.shape
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), groups = (getattr(geometry, f) for f in geometry.__dataclass_fields__)
    oh, ow = geometry.output_size(height, width)
    centred = x.astype(np.int64) - np.asarray(x_zero_point, np.int64).reshape(-1, 1, 1, 1)
    centred = np.pad(centred, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    centred = centred.reshape(n, groups, channels // groups, height + 2 * ph, width + 2 * pw)
    filters = weight.integers().astype(np.int64).reshape(groups, weight.rows // groups, channels // groups, kh, kw)
    out = np.zeros((n, groups, filters.shape[1], oh, ow), np.int64)
    for i, j in np.ndindex(kh, kw):
        part = centred[..., i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw][..., :oh, :ow]
        out += np.einsum("ngchw,gfc->ngfhw", part, filters[..., i, j])
    return out.reshape(n, weight.rows, oh, ow)


@jit
def _convolve_plane(
    x: np.ndarray, point: int, codes: np.ndarray, form: tuple[int, int], sizes: np.ndarray, out: np.ndarray
) -> None:
    """Convolve int8 (channels of a group, height, width) with uint8 (columns,); `form` is (factor, offset)."""
    kernel, stride, padding, dilation = sizes[0:2], sizes[2:4], sizes[4:6], sizes[6:8]
    factor, offset = form
    out[:] = np.int32(0)
    for column in range(codes.size):
        channel, place = divmod(column, kernel[0] * kernel[1])
        i, j = divmod(place, kernel[1])
        integer = np.int32(factor) * np.int32(codes[column]) - np.int32(offset)
        for row in range(out.shape[0]):
            y = row * stride[0] + i * dilation[0] - padding[0]
            if 0 <= y < x.shape[1]:
                for col in range(out.shape[1]):
                    z = col * stride[1] + j * dilation[1] - padding[1]
                    if 0 <= z < x.shape[2]:
                        out[row, col] += (np.int32(x[channel, y, z]) - np.int32(point)) * integer


@jit(parallel=True)
def _convolve(
    x: np.ndarray,
    points: np.ndarray,
    packed: np.ndarray,
    form: tuple[int, int, np.ndarray],
    sizes: np.ndarray,
    out: np.ndarray,
) -> None:
    """Convolve int8 (n, groups, channels, height, width) into int32 (n, filters, oh, ow), a filter at a time."""
    bits, factor, offset = form
    filters, columns = out.shape[1], x.shape[2] * sizes[0] * sizes[1]
    per_group = filters // x.shape[1]
    for row in numba.prange(filters):
        codes = np.empty(columns, np.uint8)
        unpack_columns(packed, bits, row, 0, columns, codes)
        for image in range(x.shape[0]):
            own = (factor, offset[row])
            _convolve_plane(x[image, row // per_group], points[image], codes, own, sizes, out[image, row])


def integer_convolve(
    x: np.ndarray,
    weight: IntegerWeight,
    geometry: Convolution,
    *,
    x_zero_point: np.ndarray | int = 0,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve int8 images with filters of packed integers.

    ``out[n, f, i, j]`` is the sum over `c, u, v` of ``(x[n, c, y, z] - x_zero_point[n]) * w[f, c, u, v]`` with
    ``y = i * stride + u * dilation - padding`` and `z` alike; outside the image the bracket is zero.

    Parameters
    ----------
    x : int8 (n, channels, height, width)
    weight : IntegerWeight
        (filters, channels / groups * kernel height * kernel width)
    geometry : Convolution
    x_zero_point : int, or int32 (n,)
        Codes that stand for zero, -128 to 127.
    out : int32 (n, filters, output height, output width), optional
        Written instead of a new array.

    Returns
    -------
    int32 (n, filters, output height, output width)
        Exact.

    Raises
    ------
    TypeError, ValueError
        Arrays that do not fit each other or the geometry.
    """
    x = images_of(x, weight, geometry)
    n, channels = x.shape[:2]
    points = zero_points_of(x_zero_point, n)
    out = output_of(out, (n, weight.rows, *geometry.output_size(*x.shape[2:])), np.int32)
    if jit_enabled():
        inputs = np.ones(n, np.float32), points, 8
        convolve_images(x, weight, geometry, inputs, RowForms.of(weight).numbers, out)
        return out
    factor, offset = weight.form()
    grouped = frozen(x.reshape(n, geometry.groups, channels // geometry.groups, *x.shape[2:]))
    form = (weight.bits, factor, frozen(offset))
    sizes = np.array((geometry.kernel, geometry.stride, geometry.padding, geometry.dilation)).reshape(8)
    parallel = out.size * weight.columns >= _PARALLEL
    call(_convolve, grouped, frozen(points), frozen(weight.packed), form, sizes, out, parallel=parallel)
    return out


def images_of(x: np.ndarray, weight: IntegerWeight, geometry: Convolution, dtype: type = np.int8) -> np.ndarray:
    """`x` as C-contiguous images of `dtype` that fit a weight and a geometry.

    Raises
    ------
    TypeError, ValueError
        They do not.
    """
    x = np.asarray(x)
    if not np.can_cast(x.dtype, dtype, casting="same_kind"):
        raise TypeError(f"x must be {np.dtype(dtype)}, not {x.dtype}")
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, channels, height, width), not {x.shape}")
    groups, area = geometry.groups, geometry.kernel[0] * geometry.kernel[1]
    if x.shape[1] % groups or weight.rows % groups or x.shape[1] // groups * area != weight.columns:
        raise ValueError(
            f"{x.shape[1]} channels in {groups} groups and a kernel of {geometry.kernel} do not fit a weight of shape "
            f"({weight.rows}, {weight.columns})"
        )
    return np.require(x, dtype, ["C_CONTIGUOUS", "ALIGNED"])
