"""The inner loops of attention in explicit vectors: scores of some rows, their weights, and sums of values.

LLVM's own vectorizer reads caches of 8 bits at 0.6 of the speed of memory. So the loops over positions and elements are
emitted as vector code, once for each type of element, which is widened as it is loaded, and each number of rows, which
share what is loaded. A vector of scores has 8 floats: one register of AVX2, two of NEON. One of elements may have
16 where a register of AVX-512 holds them.

They work on lines of scratch (`attention_tasks`). The first and the last take 8 products at a time: 1, 2 or 4 rows with
8, 4 or 2 positions (see `_Positions`). Beyond the last position, that one is read again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmq_kernels import exponential
from llmq_kernels.cache_elements import Matrix, elements_of
from llmq_kernels.simd import intrinsic, target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq_kernels.cache_elements import Elements

__all__ = ["LANES", "add_values", "score", "weigh"]

LANES: Final = 8
"""Floats of a vector of scores."""

_AHEAD: Final = 8192
_AHEAD_APART: Final = 2048
"""Bytes between what is read and what is fetched meanwhile into the second-level cache, for the first is too small; of
all positions together, or of each where they lie apart."""

_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)
_FLOAT: Final = ir.FloatType()
_VECTOR: Final = ir.VectorType(_FLOAT, LANES)
_CONTRACT: Final = ("contract",)


@intrinsic
def score(typing: Any, lines: Any, keys: Any, rows: Any) -> Any:
    """Write the products of `len(rows)` queries with all keys.

    Parameters
    ----------
    lines : float32 (len(rows), width)
        From 0 the query, from `2 * head_dim` room for the scores: n rounded up to a multiple of 8.
    keys : float32, uint16, int8 (n, head_dim) or uint8 (n, head_dim / 2)
        `head_dim` is a multiple of `PADDED`; uint16 holds bfloat16. uint8 holds pairs of codes of 4 bits, in blocks of
        `BLOCK` elements, of which `head_dim` is a multiple then.
    rows : tuple of int
        Its length, 1, 2 or 4, is the number of rows.
    """
    return types.void(lines, keys, rows), _emit_score


@intrinsic
def add_values(typing: Any, lines: Any, values: Any, rows: Any) -> Any:
    """Add values times weights to the sums of `len(rows)` rows.

    Parameters
    ----------
    lines : float32 (len(rows), width)
        From `head_dim` the sum, from `2 * head_dim` the weights: n rounded up to a multiple of 8, the rest zeros.
    values : float32, uint16, int8 (n, head_dim) or uint8 (n, head_dim / 2)
        As keys of `score`.
    rows : tuple of int
        Its length, 1 or 2, is the number of rows.
    """
    return types.void(lines, values, rows), _emit_add_values


@intrinsic
def weigh(typing: Any, line: Any, head_dim: Any, first: Any, last: Any, count: Any) -> Any:
    """Turn the scores of a row into weights, `exp(score - maximum)`, and bring its sums up to date.

    Parameters
    ----------
    line : float32 (width,)
        From `head_dim` the sum of values, from `2 * head_dim` the scores, in the end maximum and sum of weights.
    head_dim : int
        A multiple of `PADDED`.
    first, last : int
        Scores within `first <= i < last`, one at least, count; the others become zeros.
    count : int
        Scores, with room up to a multiple of 8.
    """
    return types.void(line, types.int64, types.int64, types.int64, types.int64), _emit_weigh


def _load_floats(builder: Any, pointer: Any, lanes: int) -> Any:
    """Some floats of scratch."""
    return builder.load(builder.bitcast(pointer, ir.VectorType(_FLOAT, lanes).as_pointer()), align=4)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` in one instruction where there is one."""
    return builder.fadd(builder.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)


class _Positions:
    """The positions that meet at a time: neighbours, or on Zen 4 those of as many stretches where little is computed.

    Zen 4, the one that is double-pumped, reads one stretch of memory at two thirds of the rate of several.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    matrix : Matrix
        A row for each position.
    count : int
        Positions at a time.

    Attributes
    ----------
    matrix : Matrix
        As given.
    apart : bool
        Whether they are of several stretches.
    step, stop : int, value
        Of the loop over the first of them.
    """

    def __init__(self, builder: Any, matrix: Matrix, count: int) -> None:
        self._builder = builder
        self.matrix = matrix
        self._count = count
        self._last = builder.sub(matrix.rows, _I64(1))
        self.apart = target().double_pumped and matrix.element.bitwidth >= 16
        turns = builder.sdiv(builder.add(matrix.rows, _I64(count - 1)), _I64(count))
        self.step, self.stop = (1, turns) if self.apart else (count, matrix.rows)
        self._distance = turns if self.apart else _I64(1)

    def beside(self, first: Any) -> list[Any]:
        """Numbers of the positions that meet `first`, some of which may lie beyond the last one."""
        return [self._builder.add(first, self._builder.mul(self._distance, _I64(i))) for i in range(self._count)]

    def starts(self, first: Any) -> list[Any]:
        """Pointers to what is stored of them; beyond the last position, to that one."""
        builder, found = self._builder, []
        for number in self.beside(first):
            inside = builder.icmp_signed("<", number, self._last)
            found.append(self.matrix.at(builder.select(inside, number, self._last), _I64(0)))
        return found


def _fetch(builder: Any, pointer: Any, element: Any, count: int, ahead: int) -> None:
    """Ask for the lines of memory that `count` elements, `ahead` bytes behind `pointer`, lie in."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    pointer = builder.bitcast(pointer, byte)
    for offset in range(0, count * element.bitwidth // 8, 64):
        builder.call(prefetch, [builder.gep(pointer, [_I64(ahead + offset)]), _I32(0), _I32(2), _I32(1)])


def _steps(builder: Any, stop: Any, step: int) -> Any:
    """Loop over 0, step, 2 * step... below `stop`."""
    return cgutils.for_range_slice(builder, _I64(0), stop, _I64(step), _I64, inc=True)


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """Sums of eight vectors, as a vector of eight."""
    while vectors[0].type.count > LANES:
        half = vectors[0].type.count // 2
        parts = [[_lanes(builder, v, v, [i + first for i in range(half)]) for first in (0, half)] for v in vectors]
        vectors = [builder.fadd(low, high) for low, high in parts]
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
    lines = Matrix(context, builder, signature.args[0], arguments[0])
    keys = Matrix(context, builder, signature.args[1], arguments[1])
    rows = len(signature.args[2])
    positions = _Positions(builder, keys, LANES // rows)
    elements = elements_of(builder, keys, rows)
    sums = ir.VectorType(_FLOAT, elements.lanes)
    room = [cgutils.alloca_once(builder, sums) for _ in range(LANES)]
    with _steps(builder, positions.stop, positions.step) as (first, _):
        starts = positions.starts(first)
        for total in room:
            builder.store(ir.Constant(sums, [0.0] * elements.lanes), total)
        with _turns(builder, positions, elements, starts) as (column, places):
            for number, parts in enumerate(elements.places):
                at = [builder.add(column, _I64(place)) for place in parts]
                queries = [
                    [_load_floats(builder, lines.at(_I64(row), place), elements.lanes) for place in at]
                    for row in range(rows)
                ]
                for i, place in enumerate(places):
                    loaded = elements.load(place, number)
                    for part in range(len(parts)):
                        key = elements.part(loaded, part)
                        for row in range(rows):
                            total = room[row * len(starts) + i]
                            found = _multiply_add(builder, queries[row][part], key, builder.load(total))
                            builder.store(found, total)
        found = _sums(builder, [builder.load(total) for total in room])
        column = builder.mul(keys.columns, _I64(2))
        for row in range(rows):
            numbers = [row * len(starts) + i for i in range(len(starts))]
            if positions.apart:
                for i, place in zip(numbers, positions.beside(builder.add(column, first)), strict=True):
                    builder.store(builder.extract_element(found, _I32(i)), lines.at(_I64(row), place))
                continue
            part, place = _lanes(builder, found, found, numbers), lines.at(_I64(row), builder.add(column, first))
            builder.store(part, builder.bitcast(place, part.type.as_pointer()), align=4)
    return context.get_dummy_value()


@contextmanager
def _turns(
    builder: Any, positions: _Positions, elements: Elements, starts: list[Any]
) -> Iterator[tuple[Any, list[Any]]]:
    """Loop over columns: yields the first of a turn, and where it is stored in each row; asks for later ones."""
    matrix = positions.matrix
    with _steps(builder, matrix.columns, elements.step) as (column, _):
        stored = column if elements.step == elements.stored else builder.lshr(column, _I64(1))
        places = [builder.gep(start, [stored]) for start in starts]
        if positions.apart:
            for place in places:
                _fetch(builder, place, matrix.element, elements.stored, _AHEAD_APART)
        else:
            behind = builder.gep(starts[0], [builder.mul(stored, _I64(len(starts)))])
            _fetch(builder, behind, matrix.element, elements.stored * len(starts), _AHEAD)
        yield column, places


def _emit_add_values(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lines = Matrix(context, builder, signature.args[0], arguments[0])
    values = Matrix(context, builder, signature.args[1], arguments[1])
    rows = len(signature.args[2])
    positions = _Positions(builder, values, LANES // rows)
    elements = elements_of(builder, values, rows)
    sums = ir.VectorType(_FLOAT, elements.lanes)
    with _steps(builder, positions.stop, positions.step) as (first, _):
        starts = positions.starts(first)
        columns = positions.beside(builder.add(builder.mul(values.columns, _I64(2)), first))
        weights = [
            [_spread(builder, builder.load(lines.at(_I64(row), column)), sums) for column in columns]
            for row in range(rows)
        ]
        with _turns(builder, positions, elements, starts) as (column, places):
            for number, parts in enumerate(elements.places):
                loaded = [elements.load(place, number) for place in places]
                for part, offset in enumerate(parts):
                    found = [elements.part(vector, part) for vector in loaded]
                    at = builder.add(values.columns, builder.add(column, _I64(offset)))
                    for row in range(rows):
                        place = builder.bitcast(lines.at(_I64(row), at), sums.as_pointer())
                        total = builder.load(place, align=4)
                        for weight, value in zip(weights[row], found, strict=True):
                            total = _multiply_add(builder, weight, value, total)
                        builder.store(total, place, align=4)
    return context.get_dummy_value()


def _spread(builder: Any, single: Any, kind: Any) -> Any:
    """A number in all lanes of a vector of a kind."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), single, _I32(0))
    return _lanes(builder, vector, vector, [0] * kind.count)


def _emit_weigh(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    head_dim, first, last, count = arguments[1:]
    (width,) = cgutils.unpack_tuple(builder, array.shape, 1)

    def at(index: Any) -> Any:
        return builder.gep(array.data, [index])

    def vector(index: Any) -> Any:
        return builder.bitcast(at(index), _VECTOR.as_pointer())

    def counts(index: Any) -> Any:
        lanes = ir.VectorType(_I64, LANES)
        number = builder.add(_spread(builder, index, lanes), ir.Constant(lanes, list(range(LANES))))
        low, high = (_spread(builder, x, lanes) for x in (first, last))
        return builder.and_(builder.icmp_signed(">=", number, low), builder.icmp_signed("<", number, high))

    scores = builder.mul(head_dim, _I64(2))
    nothing, zeros = (ir.Constant(_VECTOR, [x] * LANES) for x in (float("-inf"), 0.0))
    best, total = cgutils.alloca_once_value(builder, nothing), cgutils.alloca_once_value(builder, zeros)
    with _steps(builder, count, LANES) as (i, _):
        found = builder.select(counts(i), builder.load(vector(builder.add(scores, i)), align=4), nothing)
        builder.store(_larger(builder, found, builder.load(best)), best)
    before = builder.load(at(builder.sub(width, _I64(2))))
    largest = _larger(builder, _folded(builder, builder.load(best), _larger), _spread(builder, before, _VECTOR))
    with _steps(builder, count, LANES) as (i, _):
        place = vector(builder.add(scores, i))
        weight = _exp(builder, builder.fsub(builder.load(place, align=4), largest))
        weight = builder.select(counts(i), weight, zeros)
        builder.store(weight, place, align=4)
        builder.store(builder.fadd(weight, builder.load(total)), total)
    shrink = _exp(builder, builder.fsub(_spread(builder, before, _VECTOR), largest))
    builder.store(builder.extract_element(largest, _I32(0)), at(builder.sub(width, _I64(2))))
    place = at(builder.sub(width, _I64(1)))
    new = builder.extract_element(_folded(builder, builder.load(total), type(builder).fadd), _I32(0))
    single = builder.extract_element(shrink, _I32(0))
    builder.store(_multiply_add(builder, builder.load(place), single, new), place)
    with (
        builder.if_then(builder.fcmp_unordered("!=", single, ir.Constant(_FLOAT, 1.0))),
        _steps(builder, head_dim, LANES) as (i, _),
    ):
        place = vector(builder.add(head_dim, i))
        builder.store(builder.fmul(builder.load(place, align=4), shrink), place, align=4)
    return context.get_dummy_value()


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Larger of two vectors, lane by lane; `b` where `a` is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _folded(builder: Any, vector: Any, combine: Any) -> Any:
    """All lanes combined, in all lanes."""
    for step in (4, 2, 1):
        vector = combine(builder, vector, _lanes(builder, vector, vector, [i ^ step for i in range(LANES)]))
    return vector


def _exp(builder: Any, x: Any) -> Any:
    """`exponential.exp` of eight numbers."""

    def many(value: Any) -> Any:
        return ir.Constant(_VECTOR, [float(value)] * LANES)

    def many_bits(value: int) -> Any:
        return ir.Constant(ir.VectorType(_I32, LANES), [value] * LANES)

    x = builder.select(builder.fcmp_ordered("<", x, many(exponential.LOWEST)), many(exponential.LOWEST), x)
    x = builder.select(builder.fcmp_ordered(">", x, many(exponential.HIGHEST)), many(exponential.HIGHEST), x)
    shifted = _multiply_add(builder, x, many(exponential.LOG2_E), many(exponential.ROUND))
    n = builder.fsub(shifted, many(exponential.ROUND))
    rest = _multiply_add(builder, n, many(-exponential.LN2_HIGH), x)
    rest = _multiply_add(builder, n, many(-exponential.LN2_LOW), rest)
    series = many(exponential.SERIES[0])
    for term in exponential.SERIES[1:]:
        series = _multiply_add(builder, series, rest, many(term))
    bits = builder.shl(builder.bitcast(shifted, ir.VectorType(_I32, LANES)), many_bits(23))
    return builder.fmul(series, builder.bitcast(builder.add(bits, many_bits(0x3F800000)), _VECTOR))
