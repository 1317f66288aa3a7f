"""Sums over a tile of sixteen groups, one a lane, as explicit vectors: the inner loops of the search for scales.

A tile is float32 (n, 16): element `j` of sixteen groups side by side. Everything that a loop needs stays in registers,
each lane's sum is taken in one order on every machine, and nothing is fused: the results are those of the references to
the bit, whatever the width of the vectors.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.simd import intrinsic

__all__ = [
    "LANES",
    "fill_tile",
    "fill_tile_reference",
    "fit_sums",
    "fit_sums_reference",
    "measure",
    "measure_reference",
]

LANES: Final = 16

_WIDTH: Final = 8
"""Lanes of a vector: all that a loop needs of sixteen would not fit into the registers of AVX2."""

_VECTOR: Final = ir.VectorType(ir.FloatType(), _WIDTH)
_UNROLL: Final = 4  # elements added to each other before they are added to the sum


def fill_tile_reference(groups: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Specify `fill_tile` in plain NumPy: float32 (n, 16).

    Examples
    --------
    >>> groups = np.arange(32, dtype=np.float32).reshape(16, 2)
    >>> fill_tile_reference(groups, np.full(16, 2, np.float32))[:, :3].tolist()
    [[0.0, 4.0, 8.0], [2.0, 6.0, 10.0]]
    """
    return np.asarray((groups * factor[:, None]).T, np.float32)


def measure_reference(
    tile: np.ndarray, weights: np.ndarray, scale: np.ndarray, lowest: np.ndarray, span: np.float32
) -> np.ndarray:
    """Specify `measure` in plain NumPy: float32 (n_candidates, 16).

    Examples
    --------
    >>> tile = np.tile(np.array([[1.25], [-3.0], [0.0], [9.0]], np.float32), 16)
    >>> one, weights = np.ones((1, 16), np.float32), np.full((4, 16), 2.0, np.float32)
    >>> measure_reference(tile, weights, one, -8 * one, np.float32(15))[0, :2].tolist()
    [8.125, 8.125]
    """
    quads, quad_weights = (x.reshape(-1, 1, _UNROLL, LANES) for x in (tile, weights))
    with np.errstate(all="ignore"):
        codes = np.rint(quads * (np.float32(1.0) / scale)[:, None])
        codes = np.minimum(np.maximum(codes, lowest[:, None]), (lowest + span)[:, None])
        squares = (quads - scale[:, None] * codes) ** 2 * quad_weights  # (n / 4, n_candidates, 4, 16)
        fours = (squares[:, :, 0] + squares[:, :, 1]) + (squares[:, :, 2] + squares[:, :, 3])
        total = np.zeros(scale.shape, np.float32)
        for four in fours:
            total += four
    return total


def fit_sums_reference(
    tile: np.ndarray, weights: np.ndarray, scale: np.ndarray, lowest: np.ndarray, span: np.float32
) -> np.ndarray:
    """Specify `fit_sums` in plain NumPy: float32 (2, 16), the weighted sums of `x * code` and of `code * code`.

    Examples
    --------
    >>> tile = np.tile(np.array([[1.25], [-3.0], [0.0], [9.0]], np.float32), 16)
    >>> one, weights = np.ones((1, 16), np.float32), np.full((4, 16), 2.0, np.float32)
    >>> fit_sums_reference(tile, weights, one, -8 * one, np.float32(15))[:, 0].tolist()
    [146.5, 118.0]
    """
    sums = np.zeros((2, LANES), np.float32)
    with np.errstate(all="ignore"):
        for x, weight in zip(tile, weights, strict=True):
            code = np.minimum(np.maximum(np.rint(x * (np.float32(1.0) / scale[0])), lowest[0]), lowest[0] + span)
            weighted = code * weight
            sums += np.stack([x * weighted, code * weighted])
    return sums


# --- emitted code -----------------------------------------------------------------------------------------------


class _Emitter:
    """Emits operations on the lanes from `lane` on, as many as a vector has."""

    def __init__(self, context: Any, builder: Any, lane: int) -> None:
        self.context = context
        self.builder = builder
        self.lane = lane
        self._rint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.rint.v{_WIDTH}f32"
        )

    def array(self, kind: Any, value: Any) -> Any:
        """Data and first dimension of an array (n, 16)."""
        found = self.context.make_array(kind)(self.context, self.builder, value)
        return found.data, self.builder.extract_value(found.shape, 0)

    def row(self, data: Any, index: Any) -> Any:
        """Pointer to row `index`."""
        flat = self.builder.add(self.builder.mul(index, index.type(LANES)), index.type(self.lane))
        return self.builder.bitcast(self.builder.gep(data, [flat]), _VECTOR.as_pointer())

    def load(self, data: Any, index: Any) -> Any:
        """Row `index`."""
        return self.builder.load(self.row(data, index), align=4)

    def store(self, value: Any, data: Any, index: Any) -> None:
        """Write row `index`."""
        self.builder.store(value, self.row(data, index), align=4)

    def spread(self, scalar: Any) -> Any:
        """`scalar` in every lane."""
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), [0] * _WIDTH)
        return self.builder.shuffle_vector(one, one, zeros)

    def reciprocal(self, x: Any) -> Any:
        """``1 / x``, correctly rounded."""
        return self.builder.fdiv(ir.Constant(_VECTOR, [1.0] * _WIDTH), x)

    def code(self, x: Any, inverse: Any, lowest: Any, highest: Any) -> Any:
        """``min(max(rint(x * inverse), lowest), highest)``; NaN stays NaN."""
        b = self.builder
        code = b.call(self._rint, [b.fmul(x, inverse)])
        code = b.select(b.fcmp_ordered(">", lowest, code), lowest, code)
        return b.select(b.fcmp_ordered("<", highest, code), highest, code)


def _variable(builder: Any, value: Any) -> Any:
    """Make a variable of 16 lanes that LLVM keeps in registers."""
    place = cgutils.alloca_once(builder, _VECTOR)
    builder.store(value, place)
    return place


_SHUFFLES: Final = (
    ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),  # of neighbours
    ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),  # two apart
    ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),  # four apart
)
"""Elements of two vectors that each step of a transposition brings together."""


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose eight vectors of eight."""
    for step, pair in enumerate(_SHUFFLES):
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), list(mask)) for mask in pair]
        apart = 1 << step
        pairs = [(i, i + apart) for i in range(_WIDTH) if not i & apart]
        for i, j in pairs:
            rows[i], rows[j] = (builder.shuffle_vector(rows[i], rows[j], mask) for mask in masks)
    return [rows[i] for i in (0, 2, 1, 3, 4, 6, 5, 7)]  # the first step leaves its columns two apart


@intrinsic
def fill_tile(typing: Any, groups: Any, factor: Any, tile: Any) -> Any:
    """Put sixteen groups side by side, each times a factor; the last elements, if not eight, are left out.

    Parameters
    ----------
    groups : float32 (16, n)
    factor : float32 (1, 16)
    tile : float32 (at least n, 16)
        Rows up to ``n // 8 * 8`` are written.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        n = builder.extract_value(array.shape, 1)
        for lane in range(0, LANES, _WIDTH):
            e = _Emitter(context, builder, lane)
            factors = e.load(e.array(signature.args[1], args[1])[0], n.type(0))
            data, _ = e.array(signature.args[2], args[2])
            with cgutils.for_range(builder, builder.udiv(n, n.type(_WIDTH))) as loop:
                first = builder.mul(loop.index, n.type(_WIDTH))
                rows = []
                for k in range(_WIDTH):
                    place = builder.gep(array.data, [builder.add(builder.mul(n, n.type(lane + k)), first)])
                    rows.append(builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4))
                for k, row in enumerate(_transposed(builder, rows)):
                    e.store(builder.fmul(row, factors), data, builder.add(first, n.type(k)))
        return context.get_dummy_value()

    return types.void(groups, factor, tile), emit


@intrinsic
def measure(typing: Any, tile: Any, weights: Any, scale: Any, lowest: Any, span: Any, error: Any) -> Any:
    """Sum candidates' error: ``weight * (x - scale * clamp(rint(x / scale)))**2``, four elements at a time.

    Parameters
    ----------
    tile, weights : float32 (n, 16)
        `n` is a multiple of 4.
    scale, lowest : float32 (n_candidates, 16)
        Scale and lowest code of each lane; codes count from the zero point.
    span : float32
        From the lowest code to the highest.
    error : float32 (n_candidates, 16)
        Written.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        for lane in range(0, LANES, _WIDTH):
            e = _Emitter(context, builder, lane)
            (data, n), (weighing, _) = (e.array(kinds[k], args[k]) for k in (0, 1))
            scales, count = e.array(kinds[2], args[2])
            lowests, errors = e.array(kinds[3], args[3])[0], e.array(kinds[5], args[5])[0]
            with cgutils.for_range(builder, count) as candidates:
                s, low = e.load(scales, candidates.index), e.load(lowests, candidates.index)
                high, inverse = builder.fadd(low, e.spread(args[4])), e.reciprocal(s)
                total = _variable(builder, ir.Constant(_VECTOR, [0.0] * _WIDTH))
                with cgutils.for_range(builder, builder.udiv(n, n.type(_UNROLL))) as loop:
                    squares = []
                    for k in range(_UNROLL):
                        place = builder.add(builder.mul(loop.index, n.type(_UNROLL)), n.type(k))
                        x = e.load(data, place)
                        off = builder.fsub(x, builder.fmul(s, e.code(x, inverse, low, high)))
                        squares.append(builder.fmul(builder.fmul(off, off), e.load(weighing, place)))
                    four = builder.fadd(builder.fadd(*squares[:2]), builder.fadd(*squares[2:]))
                    builder.store(builder.fadd(builder.load(total), four), total)
                e.store(builder.load(total), errors, candidates.index)
        return context.get_dummy_value()

    return types.void(tile, weights, scale, lowest, types.float32, error), emit


@intrinsic
def fit_sums(typing: Any, tile: Any, weights: Any, scale: Any, lowest: Any, span: Any, sums: Any) -> Any:
    """Sum ``weight * x * code`` and ``weight * code * code`` of each lane's best codes, in order.

    Parameters
    ----------
    tile, weights : float32 (n, 16)
    scale, lowest : float32 (1, 16)
    span : float32
    sums : float32 (2, 16)
        Written.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        for lane in range(0, LANES, _WIDTH):
            e = _Emitter(context, builder, lane)
            (data, n), (weighing, _) = (e.array(kinds[k], args[k]) for k in (0, 1))
            zero = n.type(0)
            s, low = (e.load(e.array(kinds[k], args[k])[0], zero) for k in (2, 3))
            high, inverse = builder.fadd(low, e.spread(args[4])), e.reciprocal(s)
            top, bottom = (_variable(builder, ir.Constant(_VECTOR, [0.0] * _WIDTH)) for _ in range(2))
            with cgutils.for_range(builder, n) as loop:
                x = e.load(data, loop.index)
                code = e.code(x, inverse, low, high)
                weighted = builder.fmul(code, e.load(weighing, loop.index))
                builder.store(builder.fadd(builder.load(top), builder.fmul(x, weighted)), top)
                builder.store(builder.fadd(builder.load(bottom), builder.fmul(code, weighted)), bottom)
            written, _ = e.array(kinds[5], args[5])
            e.store(builder.load(top), written, zero)
            e.store(builder.load(bottom), written, n.type(1))
        return context.get_dummy_value()

    return types.void(tile, weights, scale, lowest, types.float32, sums), emit
