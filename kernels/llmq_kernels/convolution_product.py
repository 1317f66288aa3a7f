"""Launches the workers of convolutions: operands of filters, scratch and parameters, kept between calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmq_kernels import convolution_places as spots
from llmq_kernels import integer_places as places
from llmq_kernels.convolution_planes import encode_planes
from llmq_kernels.convolution_tiles import convolve_tiles
from llmq_kernels.depthwise import PIXELS_AT_A_TIME, convolve_depthwise
from llmq_kernels.integer_product import Plan, plan_of, workers_for
from llmq_kernels.integer_rows import TILE_BYTES
from llmq_kernels.jit import threads
from llmq_kernels.memory import address_of
from llmq_kernels.pack import unpack
from llmq_kernels.row_forms import RowForms
from llmq_kernels.simd import target
from llmq_kernels.tile_sums import TILE_IS_INPUTS, step_unit
from llmq_kernels.tiles import tile_rows
from llmq_kernels.workers import worker_address

if TYPE_CHECKING:
    from llmq_kernels.convolution import Convolution
    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["convolve_images"]

_FEWEST: Final = 64
"""Filters from which gathering their tile once more does not matter."""

_ITEM: Final = 1 << 18
"""Products that a worker takes at a time, about."""


class _Filters:
    """Operands of a weight's filters, int8 or int16 (filters, padded), and of a filter of ones."""

    def __init__(self, weight: IntegerWeight) -> None:
        goal, bits = target(), weight.bits
        unit, size, lost = step_unit(goal, bits), goal.operand(bits), goal.offset(bits)
        self.padded = -(-weight.columns // unit) * unit
        # Operands of 16 bits have lost the offset already, those of a byte lose it when they are multiplied.
        kind, zero = (np.int16, 0) if size == 2 else (np.uint8, lost)
        codes = (unpack(weight.packed, bits, weight.columns).astype(np.int16) - (lost - zero)).astype(kind)
        beyond = ((0, 0), (0, self.padded - weight.columns))
        self.operands = np.pad(codes, beyond, constant_values=zero)
        ones = np.full((1, weight.columns), zero + 1, kind)
        self.ones = np.pad(ones, beyond, constant_values=zero)
        self.forms = RowForms.of(weight)
        self.shifted = bool(self.forms.numbers[0].any())


class _Taps:
    """Integers of the filters of a depthwise convolution, int16 (filters, padded)."""

    def __init__(self, weight: IntegerWeight) -> None:
        self.padded = weight.columns + weight.columns % 2
        self.operands = np.pad(weight.integers(), ((0, 0), (0, self.padded - weight.columns)))
        self.ones = self.operands
        self.forms = RowForms.of(weight)
        self.shifted = False


def convolve_images(
    x: np.ndarray,
    weight: IntegerWeight,
    geometry: Convolution,
    inputs: tuple[np.ndarray, np.ndarray, int],
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    """Convolve int8 or float32 (n, channels, height, width), into int32 or float32 (n, filters, oh, ow).

    Parameters
    ----------
    inputs : (float32 (n,), int32 (n,), int)
        Scales, zero points and bits of `x`; of int8, scales count for float32 outputs alone.
    numbers : int32 (5, filters)
        See `RowForms.filled`.
    """
    if not out.size:
        return
    plan = plan_of(weight, (geometry, x.shape), _Plan, x, geometry)
    plan.run((x, out), inputs, numbers, workers_for(out.size * weight.columns))


class _Plan(Plan):
    """Of a convolution of images of one shape."""

    def __init__(self, weight: IntegerWeight, x: np.ndarray, geometry: Convolution) -> None:
        goal, kept = target(), weight.__dict__
        self._bits, self._depthwise = weight.bits, x.shape[1] == geometry.groups
        kind = _Taps if self._depthwise else _Filters
        self.filters: _Taps | _Filters = kept.get(kind.__name__) or kept.setdefault(kind.__name__, kind(weight))
        self.size = 2 if self._depthwise else goal.operand(weight.bits)
        lanes = tile_rows(goal)
        planes = _plane_values(x, geometry)
        # The last run of the last plane reads a whole tile's width.
        image_bytes = (x.shape[1] * planes[spots.PLANE] + max(lanes, PIXELS_AT_A_TIME)) * self.size
        self._offsets = _offsets(x, geometry, planes, self.filters.padded) * self.size
        height, width = geometry.output_size(*x.shape[2:])
        # Where rows of outputs follow each other without a gap they make one long row.
        out_width = height * width if planes[spots.DOWN] == width else width
        own, groups = weight.rows // geometry.groups, x.shape[0] * geometry.groups
        part, turn = _share(own, weight.columns, -(-height * width // lanes), groups)
        values = {
            **planes,
            places.TOKENS: x.shape[0],
            places.COLUMNS: weight.columns,
            places.PADDED: self.filters.padded,
            places.X_BYTES: image_bytes,
            places.ROWS: weight.rows,
            places.FORM_BYTES: 4 * self.filters.forms.numbers.shape[1],
            spots.GROUPS: geometry.groups,
            spots.GROUP_BYTES: x.shape[1] // geometry.groups * planes[spots.PLANE] * self.size,
            spots.FILTERS: own,
            spots.PART: part,
            spots.TURN: turn,
            spots.OPERANDS: address_of(self.filters.operands),
            spots.ONES: address_of(self.filters.ones) if self.filters.shifted else 0,
            spots.OFFSETS: address_of(self._offsets),
            spots.OUT_WIDTH: out_width,
            spots.PIXELS: height * width,
        }
        parts = {
            places.SPARE: x.shape[2] * x.shape[3],
            spots.RUNS: 16 * lanes,
            spots.LINE: 4 * max(lanes, PIXELS_AT_A_TIME),
            places.TILE: lanes * (TILE_BYTES + 4),
            places.SUMS: 4 * lanes * (part + 1),
        }
        super().__init__(values, {places.X_CODES: x.shape[0] * image_bytes}, parts)

    def worker_addresses(self, source: int, result: int) -> tuple[int, int]:
        """Addresses of the workers that encode images and that convolve."""
        encode = worker_address(encode_planes, self.size, 2 if self._depthwise else 1, source)
        if self._depthwise:
            return encode, worker_address(convolve_depthwise, result)
        variant = self._bits, TILE_IS_INPUTS, self.filters.forms.factor
        return encode, worker_address(convolve_tiles, *variant, result)


def _plane_values(x: np.ndarray, geometry: Convolution) -> dict[int, int]:
    """Sizes of the planes of images, by place."""
    _, channels, height, width = x.shape
    (top, left), (down, stride) = geometry.padding, geometry.stride
    phase = -(-(width + 2 * left) // stride)
    row = stride * phase
    return {
        spots.CHANNELS: channels,
        spots.HEIGHT: height,
        spots.WIDTH: width,
        spots.TOP: top,
        spots.LEFT: left,
        spots.STRIDE: stride,
        spots.PHASE: phase,
        spots.ROW: row,
        spots.PLANE: row * (height + 2 * top),
        spots.DOWN: row * down,
    }


def _offsets(x: np.ndarray, geometry: Convolution, planes: dict[int, int], padded: int) -> np.ndarray:
    """Operands from the first that a filter meets to each of its others, int64 (padded,)."""
    (rows, columns), (down, right) = geometry.kernel, geometry.dilation
    channel = np.arange(x.shape[1] // geometry.groups)[:, None, None]
    i, j = down * np.arange(rows)[:, None], right * np.arange(columns)
    stride = geometry.stride[1]
    within = i * planes[spots.ROW] + j % stride * planes[spots.PHASE] + j // stride
    found = (channel * planes[spots.PLANE] + within).reshape(-1)
    return np.pad(found, (0, padded - found.size))


def _share(filters: int, columns: int, tiles: int, images: int) -> tuple[int, int]:
    """Filters and tiles that a worker takes at a time: few gatherings of a tile, but work for all workers."""
    part = filters
    while images * tiles * -(-filters // part) < 8 * threads() and part >= _FEWEST:
        part = -(-part // 2)
    per_tile = part * columns * tile_rows(target())
    return part, max(1, min(_ITEM // per_tile, images * tiles // (4 * threads())))
