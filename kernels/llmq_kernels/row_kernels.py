"""Microkernels of `llmq_kernels.decode`: a few packed rows, far apart from each other, meet a few tokens.

A row is walked chunk by chunk (see `llmq_kernels.planes`). The integer sums of each group of activations become float
with a product of scales, which a vector of groups at a time gets beforehand (see `llmq_kernels.scales`): between two
rows nothing keeps the memory waiting. Several rows are walked side by side, where memory answers better.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba.core import cgutils

from llmq_kernels.chunks import adds_words, chunks_of, new_chunks
from llmq_kernels.scales import RowScales
from llmq_kernels.simd import F32, I32, I64, Emitter, constant, target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmq_kernels.simd import Target

__all__ = ["row_kernel", "rows_together", "scratch_bytes"]

_KEPT: Final = 4
"""Vectors of activations that registers hold beside all else; more are loaded for each row, lest LLVM spill them."""

_AHEAD: Final = ((2048, 2), (512, 1))
"""How far ahead `_LoopedRows` asks for bytes of a row, and for which level of the cache."""

_LOOPED: Final = {2: (2,), 4: (1, 2, 4), 6: (1, 2), 7: (1, 2), 8: (1, 2, 4)}
"""Tokens, by the width of a code, for which `_LoopedRows` is faster on Zen 4, the one that is double-pumped; three of
them run as four."""


def rows_together(bits: int, tokens: int) -> int:
    """Rows that are walked side by side: as many as registers hold sums of, and on Zen 4 often six."""
    if _looped(bits, tokens, target()):
        return 6
    if tokens > 1:
        return 2
    return 6 if target().width == 64 else 4


def scratch_bytes(bits: int, tokens: int) -> int:
    """Bytes at the beginning of a worker's scratch: products of scales for a vector of groups, and results."""
    return rows_together(bits, tokens) * tokens * (4 * target().lanes + 4)


def row_kernel(emitter: Emitter, variant: tuple[int, int, int], parts: list[list[Any]]) -> RowKernel:
    """Choose how rows are walked: see `RowKernel`."""
    looped = _looped(variant[0], variant[2], emitter.target)
    return (_LoopedRows if looped else _UnrolledRows)(emitter, variant, parts)


def _looped(bits: int, tokens: int, goal: Target) -> bool:
    return goal.double_pumped and tokens in _LOOPED.get(bits, ())


class RowKernel(ABC):
    """Emits the products of a few rows and tokens.

    Parameters
    ----------
    emitter : Emitter
    variant : (int, int, int)
        Width of a code, activations of a group, tokens.
    parts : list of list of value
        The tuples among the arguments of `llmq_kernels.decode._dot_rows`: `place`, `x`, `scale`, `zero`, `ends`.
    """

    def __init__(self, emitter: Emitter, variant: tuple[int, int, int], parts: list[list[Any]]) -> None:
        self.emitter = emitter
        self.bits, self.group, self.tokens = variant
        self.rows = rows_together(self.bits, self.tokens)
        self.lanes = emitter.target.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.dot = new_chunks(emitter, self.bits)
        self.codes, self.step, self.vectors = chunks_of(self.bits, emitter.target)
        self.shared = max(1, self.codes // self.group)
        self.chunks = max(1, self.group // self.codes)  # of a group; one of the two is 1
        self.place, x, self.scale, self.zero, (self.out, self.table) = parts
        self.x_at = self.series(x[0], x[1], self.tokens)
        self.factor_at, self.sum_at = (self.series(base, x[4], self.tokens) for base in x[2:4])
        self.scales = RowScales(emitter, self.scale[2], self.zero[0], self.zero[2], (self.zero[3], self.zero[4]))

    @abstractmethod
    def emit(self, count: Any) -> None:
        """Emit the loop over `count` groups, a vector of them at a time."""

    def series(self, first: Any, step: Any, count: int) -> list[Any]:
        """Addresses at equal distances."""
        return [self.emitter.add(first, self.emitter.mul(step, i)) for i in range(count)]

    def left(self, count: Any, first: Any) -> tuple[Any, Any]:
        """How many groups there are from one on, and at most as many as a vector has lanes."""
        builder, whole = self.emitter.builder, self.emitter.number(self.lanes)
        left = builder.sub(count, first)
        return left, builder.select(builder.icmp_signed("<", left, whole), left, whole)

    def of_tokens(self, first: Any) -> tuple[list[Any], list[Any]]:
        """Vectors of scales of the tokens' activations from a group on, and of what zero points are multiplied by."""
        emitter, builder = self.emitter, self.emitter.builder
        at = emitter.mul(first, 4)
        factors = [emitter.load(emitter.add(address, at), self.vector) for address in self.factor_at]
        totals = [emitter.load(emitter.add(address, at), self.vector) for address in self.sum_at]
        minus = constant(self.vector, -float(self.dot.excess))
        return factors, [builder.fmul(total, minus) for total in totals]

    def begin(self, place: Any, scales: tuple[Any, Any], tokens: tuple[Any, Any], total: Any) -> Any:
        """Put a row's products of scales for a token into the table, and take off its sum what the zero points do."""
        emitter, builder = self.emitter, self.emitter.builder
        emitter.store(builder.fmul(scales[0], tokens[0]), place)
        return emitter.fma(scales[0], builder.fmul(scales[1], tokens[1]), total)

    def chunk_of(self, group: Any) -> Any:
        """Number of the chunk in which a group begins."""
        emitter = self.emitter
        return emitter.builder.sdiv(emitter.mul(group, self.chunks), emitter.number(self.shared))

    def x_of(self, chunk: Any) -> list[Any]:
        """Addresses of the tokens' activations that meet a chunk."""
        emitter = self.emitter
        offset = emitter.mul(chunk, self.vectors * emitter.target.width)
        return [emitter.add(base, offset) for base in self.x_at]

    def end(self, total: Any, place: Any) -> None:
        """Store a result."""
        emitter = self.emitter
        found = emitter.sum_lanes(total)
        emitter.store(emitter.builder.fmul(found, ir.Constant(F32, 1 / self.dot.excess)), place)


class _UnrolledRows(RowKernel):
    """Registers hold all sums."""

    def __init__(self, emitter: Emitter, variant: tuple[int, int, int], parts: list[list[Any]]) -> None:
        super().__init__(emitter, variant, parts)
        self._row_at = self.series(self.place[0], self.place[1], self.rows)
        starts = (self.series(pair[0], pair[1], self.rows) for pair in (self.scale, self.zero))
        self._scale_at = list(zip(*starts, strict=True))
        # How far ahead of what is read it is asked for: bytes of a row, and the level of the cache.
        self._prefetches = ((1536 if emitter.target.width == 64 else 2048, 2), (256, 1))

    def emit(self, count: Any) -> None:
        emitter = self.emitter

        def block(first: Any, sums: list[Any]) -> list[Any]:
            left, most = self.left(count, first)
            sums = self._begin(first, left, sums)
            return emitter.loop(most, self.shared, sums, lambda i, sums: self._add_group(first, i, sums))

        zero = ir.Constant(self.vector, None)
        sums = emitter.loop(count, self.lanes, [zero] * (self.rows * self.tokens), block)
        for k, total in enumerate(sums):
            self.end(total, emitter.add(self.out, 4 * k))

    def _begin(self, first: Any, left: Any, sums: list[Any]) -> list[Any]:
        scales = zip(*self.scales.load(self._scale_at, (first, left), self.scale[3]), strict=True)
        tokens = list(zip(*self.of_tokens(first), strict=True))
        pairs = [(row, token) for row in scales for token in tokens]
        places = self.series(self.table, 4 * self.lanes, len(sums))
        return [self.begin(at, *pair, total) for at, pair, total in zip(places, pairs, sums, strict=True)]

    def _add_group(self, first: Any, i: Any, sums: list[Any]) -> list[Any]:
        """Add the products of one group, or of those in one chunk: number `i` of the vector from `first` on."""
        emitter, dot = self.emitter, self.dot
        done = self.chunk_of(emitter.add(first, i))
        pairs: list[list[tuple[list[Any], list[Any]]]] = [[] for _ in sums]
        for chunk in range(self.chunks):
            at = emitter.add(done, chunk)
            own = self.x_of(at)
            x = [dot.load_x(address) for address in own]
            for r, row in enumerate(self._row_at):
                place = emitter.add(row, emitter.mul(at, self.step))
                for ahead, level in self._prefetches:
                    emitter.prefetch(place, ahead, level)
                planes = dot.load_planes(place)
                if self.vectors * self.tokens > _KEPT:
                    x = [dot.load_x(emitter.opaque(address)) for address in own]
                for t in range(self.tokens):
                    pairs[r * self.tokens + t].append((planes, x[t]))
        results = []
        for k, own in enumerate(pairs):
            factor = self._factor(emitter.add(self.table, emitter.mul(i, 4)), 4 * self.lanes * k)
            results.append(emitter.fma(emitter.to_float(dot.sum_of(own)), factor, sums[k]))
        return results

    def _factor(self, address: Any, offset: int) -> Any:
        """Load one factor for all lanes, or several, each for its part of them."""
        emitter, lanes, shared = self.emitter, self.lanes, self.shared
        if shared == 1:
            return emitter.splat(emitter.load(address, F32, offset))
        several = emitter.load(address, ir.VectorType(F32, shared), offset)
        if shared == lanes or not adds_words(emitter.target):
            return emitter.shuffle(several, None, [lane * shared // lanes for lane in range(lanes)])
        # Repeated by the load, they need not cross the halves of a register, which takes AVX2 three steps.
        repeated = emitter.opaque(emitter.shuffle(several, None, [lane % shared for lane in range(lanes)]))
        return emitter.shuffle(repeated, None, [lane // 4 * 4 + lane * shared // lanes for lane in range(lanes)])


class _LoopedRows(RowKernel):
    """One piece of code serves row after row, and sums lie in memory.

    A load that walks a single row teaches Zen 4's first-level cache to fetch its next lines, which costs a sixth of the
    rate of memory; one that comes to another row each time does not.
    """

    def __init__(self, emitter: Emitter, variant: tuple[int, int, int], parts: list[list[Any]]) -> None:
        super().__init__(emitter, variant, parts)
        self._sums, self._partial = self._room(F32), self._room(I32)

    def _room(self, element: Any) -> Any:
        """Address of a vector for each row and token."""
        builder, kind = self.emitter.builder, ir.VectorType(element, self.lanes)
        return builder.ptrtoint(cgutils.alloca_once(builder, kind, size=self.rows * self.tokens), I64)

    def emit(self, count: Any) -> None:
        emitter, zero = self.emitter, ir.Constant(self.vector, None)

        def clear(r: Any) -> None:
            for place in self._vectors(self._sums, r):
                emitter.store(zero, place)

        def block(first: Any, values: list[Any]) -> list[Any]:
            left, most = self.left(count, first)
            tokens = list(zip(*self.of_tokens(first), strict=True))
            self._each_row(lambda r: self._begin(r, (first, left), tokens))
            return emitter.loop(most, self.shared, values, lambda i, values: self._add_group(first, i, values))

        def end(r: Any) -> None:
            results = self.series(emitter.add(self.out, emitter.mul(r, 4 * self.tokens)), 4, self.tokens)
            for place, to in zip(self._vectors(self._sums, r), results, strict=True):
                self.end(emitter.load(place, self.vector), to)

        self._each_row(clear)
        emitter.loop(count, self.lanes, [], block)
        self._each_row(end)

    def _each_row(self, body: Callable[[Any], None]) -> None:
        """Emit a loop over the rows' numbers that LLVM cannot unroll: it does not know how they follow each other."""
        emitter, builder = self.emitter, self.emitter.builder
        before, inside, after = builder.block, builder.append_basic_block("row"), builder.append_basic_block("rows")
        builder.branch(inside)
        builder.position_at_end(inside)
        r = builder.phi(I64)
        body(r)
        following = emitter.opaque(emitter.add(r, 1))
        r.add_incoming(emitter.number(0), before)
        r.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, emitter.number(self.rows)), inside, after)
        builder.position_at_end(after)

    def _vectors(self, base: Any, r: Any) -> list[Any]:
        """Addresses of the vectors of row `r`, one for each token."""
        emitter, width = self.emitter, self.emitter.target.width
        return self.series(emitter.add(base, emitter.mul(r, self.tokens * width)), width, self.tokens)

    def _begin(self, r: Any, groups: tuple[Any, Any], tokens: Sequence[tuple[Any, Any]]) -> None:
        emitter = self.emitter
        at = (emitter.add(pair[0], emitter.mul(pair[1], r)) for pair in (self.scale, self.zero))
        (scale,), (zero,) = self.scales.load([tuple(at)], groups, self.scale[3])
        places = zip(self._vectors(self.table, r), self._vectors(self._sums, r), tokens, strict=True)
        for table, place, token in places:
            emitter.store(self.begin(table, (scale, zero), token, emitter.load(place, self.vector)), place)

    def _add_group(self, first: Any, i: Any, values: list[Any]) -> list[Any]:
        """Add the products of one group, or of those in one chunk: number `i` of the vector from `first` on.

        All rows meet a chunk before any meets the next, lest loads walk a row after all.
        """
        order = self._order(i)
        for number in range(self.chunks):
            chunk = self.emitter.add(self.chunk_of(self.emitter.add(first, i)), number)
            self._add_chunk(chunk, number == 0, (i, order) if number == self.chunks - 1 else None)
        return values

    def _add_chunk(self, chunk: Any, begins: bool, ends: tuple[Any, Any] | None) -> None:
        """Add the products of a chunk, with which a group begins or not, and ends or not."""
        emitter, dot = self.emitter, self.dot
        x = [dot.load_x(address) for address in self.x_of(chunk)]
        offset = emitter.mul(chunk, self.step)
        whole = ir.VectorType(I32, self.lanes)

        def row(r: Any) -> None:
            at = emitter.add(emitter.add(self.place[0], emitter.mul(self.place[1], r)), offset)
            for ahead, level in _AHEAD:
                emitter.prefetch(at, ahead, level)
            planes = dot.load_planes(at)
            places = (self._vectors(base, r) for base in (self._partial, self._sums, self.table))
            for own, partial, place, table in zip(x, *places, strict=True):
                start = None if begins else emitter.load(partial, whole)
                total = dot.words_of(zip(planes, own, strict=True), start)
                if ends is None:
                    emitter.store(total, partial)
                    continue
                added = emitter.fma(
                    emitter.to_float(total), self._factor(table, *ends), emitter.load(place, self.vector)
                )
                emitter.store(added, place)

        self._each_row(row)

    def _order(self, group: Any) -> Any:
        """Where in the table each lane's factor is, for the groups of one chunk from number `group` on."""
        emitter, words = self.emitter, ir.VectorType(I32, self.lanes)
        numbers = ir.Constant(words, [ir.Constant(I32, k * self.shared // self.lanes) for k in range(self.lanes)])
        return emitter.builder.add(numbers, emitter.splat(emitter.builder.trunc(group, I32)))

    def _factor(self, table: Any, group: Any, order: Any) -> Any:
        emitter = self.emitter
        if self.shared == 1:
            return emitter.splat(emitter.load(emitter.add(table, emitter.mul(group, 4)), F32))
        factors = emitter.load(table, self.vector)
        if self.shared == self.lanes:
            return factors
        return emitter.call("llvm.x86.avx512.permvar.sf.512", self.vector, factors, order)
