"""The two inner loops of attention in explicit vectors: scores of some rows, and their sums of values.

LLVM's own vectorizer reads caches of 8 and 16 bits at half the speed of memory or less. So the loops over positions
and elements are emitted as vector code, once for each type of element, which is widened as it is loaded, and each
number of rows, which share what is loaded. A vector has 8 floats: one register of AVX2, two of NEON.

Both work on lines of scratch (`attention_tasks`), and take 8 products at a time: 1, 2 or 4 rows with 8, 4 or 2
positions. Beyond the last position, that one is read again.
"""

from __future__ import annotations

from typing import Any, Final

import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils

__all__ = ["LANES", "add_values", "score"]

LANES: Final = 8
"""Floats of a vector: heads are padded to multiples of it."""

_extending: Any = numba.extending  # some releases are half typed

_AHEAD: Final = 4096
"""Bytes between what is read and what is fetched into the caches meanwhile."""

_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)
_FLOAT: Final = ir.FloatType()
_VECTOR: Final = ir.VectorType(_FLOAT, LANES)
_CONTRACT: Final = ("contract",)


@_extending.intrinsic
def score(typing: Any, lines: Any, keys: Any, rows: Any) -> Any:  # noqa: ARG001
    """Write the products of `len(rows)` queries with all keys.

    Parameters
    ----------
    lines : float32 (len(rows), width)
        From 0 the query, from `2 * head_dim` room for the scores: n rounded up to a multiple of 8.
    keys : float32, uint16 or int8 (n, head_dim)
        `head_dim` is a multiple of 8; uint16 holds bfloat16.
    rows : tuple of int
        Its length, 1, 2 or 4, is the number of rows.
    """
    return types.void(lines, keys, rows), _emit_score


@_extending.intrinsic
def add_values(typing: Any, lines: Any, values: Any, rows: Any) -> Any:  # noqa: ARG001
    """Add values times weights to the sums of `len(rows)` rows.

    Parameters
    ----------
    lines : float32 (len(rows), width)
        From `head_dim` the sum, from `2 * head_dim` the weights: n rounded up to a multiple of 8, the rest zeros.
    values : float32, uint16 or int8 (n, head_dim)
        `head_dim` is a multiple of 8; uint16 holds bfloat16.
    rows : tuple of int
        Its length, 1 or 2, is the number of rows.
    """
    return types.void(lines, values, rows), _emit_add_values


class _Matrix:
    """A C-contiguous matrix as pointers."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._element = kind.dtype
        self._base = array.data
        self.rows, self.columns = cgutils.unpack_tuple(builder, array.shape, 2)

    def at(self, row: Any, column: Any) -> Any:
        """Pointer to an element."""
        offset = self._builder.add(self._builder.mul(row, self.columns), column)
        return self._builder.gep(self._base, [offset])

    def load(self, row: Any, column: Any) -> Any:
        """Eight elements of a row as a vector of floats."""
        return self.widen(self.at(row, column))

    def widen(self, pointer: Any) -> Any:
        """Eight elements as a vector of floats."""
        builder, element = self._builder, self._element
        stored = ir.VectorType({types.float32: _FLOAT}.get(element, ir.IntType(element.bitwidth)), LANES)
        raw = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=element.bitwidth // 8)
        if element == types.float32:
            return raw
        wide = ir.VectorType(_I32, LANES)
        if element == types.uint16:
            shift = ir.Constant(wide, [16] * LANES)
            return builder.bitcast(builder.shl(builder.zext(raw, wide), shift), _VECTOR)
        return builder.sitofp(builder.sext(raw, wide), _VECTOR)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` in one instruction where there is one."""
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


def _positions(builder: Any, first: Any, count: int, last: Any) -> list[Any]:
    """Positions from `first` on, none beyond `last`."""
    found = []
    for i in range(count):
        position = builder.add(first, _I64(i))
        found.append(builder.select(builder.icmp_signed("<", position, last), position, last))
    return found


def _fetch(builder: Any, pointer: Any, element: Any, count: int) -> None:
    """Ask for the lines of memory that `count` elements, `_AHEAD` bytes behind `pointer`, lie in."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    pointer = builder.bitcast(pointer, byte)
    for offset in range(0, count * element.bitwidth // 8, 64):
        builder.call(prefetch, [builder.gep(pointer, [_I64(_AHEAD + offset)]), _I32(0), _I32(3), _I32(1)])


def _steps(builder: Any, stop: Any, step: int) -> Any:
    """Loop over 0, step, 2 * step... below `stop`."""
    return cgutils.for_range_slice(builder, _I64(0), stop, _I64(step), _I64, inc=True)


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Sums of eight vectors, as a vector."""
    # Each round halves the number of vectors; the first two add neighbours, the last the halves that AVX keeps apart.
    for low, step in (
        ([0, 2, 8, 10, 4, 6, 12, 14], 1),
        ([0, 2, 8, 10, 4, 6, 12, 14], 1),
        ([0, 1, 2, 3, 8, 9, 10, 11], 4),
    ):
        high = [i + step for i in low]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.fadd(_lanes(builder, a, b, low), _lanes(builder, a, b, high)) for a, b in pairs]
    return vectors[0]


def _lanes(builder: Any, a: Any, b: Any, numbers: list[int]) -> Any:
    """Lanes of two vectors by number, as a vector."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(numbers)), numbers))


def _emit_score(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lines = _Matrix(context, builder, signature.args[0], arguments[0])
    keys = _Matrix(context, builder, signature.args[1], arguments[1])
    rows = len(signature.args[2])
    last = builder.sub(keys.rows, _I64(1))
    room = [cgutils.alloca_once(builder, _VECTOR) for _ in range(LANES)]
    with _steps(builder, keys.rows, LANES // rows) as (first, _):
        starts = [keys.at(position, _I64(0)) for position in _positions(builder, first, LANES // rows, last)]
        for total in room:
            builder.store(ir.Constant(_VECTOR, [0.0] * LANES), total)
        with _steps(builder, keys.columns, LANES) as (column, _):
            behind = builder.mul(column, _I64(len(starts)))
            _fetch(builder, builder.gep(starts[0], [behind]), signature.args[1].dtype, LANES * len(starts))
            queries = [lines.load(_I64(row), column) for row in range(rows)]
            for i, start in enumerate(starts):
                key = keys.widen(builder.gep(start, [column]))
                for row, query in enumerate(queries):
                    total = room[row * len(starts) + i]
                    builder.store(_multiply_add(builder, query, key, builder.load(total)), total)
        found = _sums(builder, [builder.load(total) for total in room])
        column = builder.add(builder.mul(keys.columns, _I64(2)), first)
        for row in range(rows):
            part = _lanes(builder, found, found, [row * len(starts) + i for i in range(len(starts))])
            builder.store(part, builder.bitcast(lines.at(_I64(row), column), part.type.as_pointer()), align=4)
    return context.get_dummy_value()


def _emit_add_values(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lines = _Matrix(context, builder, signature.args[0], arguments[0])
    values = _Matrix(context, builder, signature.args[1], arguments[1])
    rows = len(signature.args[2])
    last = builder.sub(values.rows, _I64(1))
    with _steps(builder, values.rows, LANES // rows) as (first, _):
        starts = [values.at(position, _I64(0)) for position in _positions(builder, first, LANES // rows, last)]
        column = builder.add(builder.mul(values.columns, _I64(2)), first)
        columns = [builder.add(column, _I64(i)) for i in range(len(starts))]
        weights = [[_spread(builder, lines.at(_I64(row), column)) for column in columns] for row in range(rows)]
        with _steps(builder, values.columns, LANES) as (column, _):
            behind = builder.mul(column, _I64(len(starts)))
            _fetch(builder, builder.gep(starts[0], [behind]), signature.args[1].dtype, LANES * len(starts))
            found = [values.widen(builder.gep(start, [column])) for start in starts]
            for row in range(rows):
                place = lines.at(_I64(row), builder.add(values.columns, column))
                place = builder.bitcast(place, _VECTOR.as_pointer())
                total = builder.load(place, align=4)
                for weight, value in zip(weights[row], found, strict=True):
                    total = _multiply_add(builder, weight, value, total)
                builder.store(total, place, align=4)
    return context.get_dummy_value()


def _spread(builder: Any, pointer: Any) -> Any:
    """A float in all lanes."""
    single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), builder.load(pointer), _I32(0))
    return _lanes(builder, single, single, [0] * LANES)
