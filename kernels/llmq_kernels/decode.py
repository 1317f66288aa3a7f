"""Products of a few tokens with packed rows: each row is read once, from where it lies, at the speed of memory.

A row is walked chunk by chunk (see `llmq_kernels.planes`). The integer sums of each group of activations become float
with a product of scales, which a vector of groups at a time gets beforehand (see `llmq_kernels.scales`): between two
rows nothing keeps the memory waiting. Several rows are walked side by side, far apart from each other, where that pays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba.core import types

from llmq_kernels.chunks import adds_words, chunks_of, new_chunks
from llmq_kernels.jit import jit
from llmq_kernels.memory import copy_bytes, expand, floats, next_number
from llmq_kernels.places import (
    CHUNK,
    COPIES,
    COPY_BYTES,
    COUNTER,
    GROUPS,
    JOB_SIZE,
    JOBS,
    KIND,
    OUT,
    PACKED,
    REPEAT,
    ROW_BYTES,
    ROWS,
    SAFE_ROWS,
    SCALE,
    SCALE_BYTES,
    SCRATCH,
    SCRATCH_BYTES,
    SPARE,
    STRIDE,
    TOKENS,
    WEIGHTS,
    X_BYTES,
    X_CODES,
    X_SCALES,
    X_SUMS,
    ZERO,
    ZERO_FORM,
    ZERO_ROW,
    ZERO_STEP,
)
from llmq_kernels.scales import RowScales
from llmq_kernels.simd import F32, Emitter, constant, intrinsic, target
from llmq_kernels.workers import constants, length

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["decode_rows", "rows_together", "scratch_bytes"]

_KEPT: Final = 4
"""Vectors of activations that registers hold beside all else; more are loaded for each row, lest LLVM spill them."""

_SEVERAL: Final = 2
"""Rows that are walked side by side for more than one token."""


def rows_together(bits: int, group: int, tokens: int) -> int:
    """Rows that are walked side by side.

    For one token more where 32 registers hold the sums; but where next to nothing is done with what is read, as with
    codes of 8 bits in large groups, Zen 4 (the one that is double-pumped) reads one row after the other faster. An
    Ice Lake server reads six at 1.3 times the rate of one.
    """
    if tokens > 1:
        return _SEVERAL
    if target().width < 64:
        return 4
    return 1 if target().double_pumped and bits == 8 and group >= 128 else 6


def _prefetches(rows: int) -> Sequence[tuple[int, int]]:
    """How far ahead of what is read it is asked for: bytes of a row, and the level of the cache."""
    if rows == 1:
        return ((1024, 2),)
    return ((1536, 2), (256, 1)) if target().width == 64 else ((2048, 2), (256, 1))


def scratch_bytes(bits: int, group: int, tokens: int) -> int:
    """Bytes at the beginning of a worker's scratch: products of scales for a vector of groups, and results."""
    return rows_together(bits, group, tokens) * tokens * (4 * target().lanes + 4)


@intrinsic
def _dot_rows(typingctx: Any, place: Any, x: Any, scale: Any, zero: Any, count: Any, ends: Any, variant: Any) -> Any:
    """Multiply a few packed rows by a few tokens.

    Parameters
    ----------
    place : (int64, int64)
        Address of the first row, bytes from one to the next.
    x : (int64, int64, int64, int64, int64)
        Address of the first token's activations, int8 in plane order, and bytes to the next; addresses of its scales
        and sums of values, and bytes to the next.
    scale : (int64, int64, int64, int64)
        Address of the first row's scales, bytes to the next row's, a value of `SCALE_KINDS`, and bytes to those that
        are fetched into the caches meanwhile.
    zero : (int64, int64, int64, float32, float32)
        Address of the first row's zero points, bytes to the next row's, and `step` and `form` of `RowScales`.
    count : int64
        Groups of activations in a row.
    ends : (int64, int64)
        Addresses of the results, float32 (rows, tokens), and of scratch, float32 (rows, tokens, lanes).
    variant : (pointer, pointer, pointer)
        Their lengths are the width of a code, the binary logarithm of the group of activations, the tokens.
    """
    signature = types.void(place, x, scale, zero, count, ends, variant)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, share, tokens = (length(kind) for kind in signature.args[6])
        parts = [[builder.extract_value(args[i], j) for j in range(len(signature.args[i]))] for i in (0, 1, 2, 3, 5)]
        _RowKernel(Emitter(builder, target()), (bits, 2**share, tokens), parts).emit(args[4])
        return context.get_dummy_value()

    return signature, emit


class _RowKernel:
    """Emits the products of a few rows and tokens; `parts` are the tuples among the arguments of `_dot_rows`."""

    def __init__(self, emitter: Emitter, variant: tuple[int, int, int], parts: list[list[Any]]) -> None:
        self.emitter = emitter
        self.bits, self.group, self.tokens = variant
        self.rows = rows_together(*variant)
        self.lanes = emitter.target.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.dot = new_chunks(emitter, self.bits)
        self.codes, self.step, self.vectors = chunks_of(self.bits, emitter.target)
        self.shared = max(1, self.codes // self.group)
        place, x, scale, zero, (self.out, self.table) = parts
        self.row_at = self._series(place[0], place[1], self.rows)
        self.x_at = self._series(x[0], x[1], self.tokens)
        self.factor_at, self.sum_at = (self._series(base, x[4], self.tokens) for base in x[2:4])
        scales, zeros = (self._series(pair[0], pair[1], self.rows) for pair in (scale, zero))
        pairs = list(zip(scales, zeros, strict=True))
        self.scales = RowScales(emitter, pairs, scale[2], zero[2], (zero[3], zero[4]))
        self.scale_ahead = scale[3]

    def _series(self, first: Any, step: Any, count: int) -> list[Any]:
        return [self.emitter.add(first, self.emitter.mul(step, i)) for i in range(count)]

    def emit(self, count: Any) -> None:
        """Emit the loop over all groups, a vector of them at a time."""
        emitter, builder = self.emitter, self.emitter.builder
        whole = emitter.number(self.lanes)

        def block(first: Any, sums: list[Any]) -> list[Any]:
            left = builder.sub(count, first)
            sums = self._begin(first, left, sums)
            most = builder.select(builder.icmp_signed("<", left, whole), left, whole)
            return emitter.loop(most, self.shared, sums, lambda i, sums: self._add_group(first, i, sums))

        zero = ir.Constant(self.vector, None)
        sums = emitter.loop(count, self.lanes, [zero] * (self.rows * self.tokens), block)
        for k, total in enumerate(sums):
            found = emitter.sum_lanes(total)
            emitter.store(builder.fmul(found, ir.Constant(F32, 1 / self.dot.excess)), self.out, 4 * k)

    def _begin(self, first: Any, left: Any, sums: list[Any]) -> list[Any]:
        """Put the products of scales into the table, and take off the sums what the zero points do."""
        emitter, builder = self.emitter, self.emitter.builder
        scales, zeros = self.scales.load(first, left, self.scale_ahead)
        at = emitter.mul(first, 4)
        factors = [emitter.load(emitter.add(address, at), self.vector) for address in self.factor_at]
        totals = [emitter.load(emitter.add(address, at), self.vector) for address in self.sum_at]
        minus = constant(self.vector, -float(self.dot.excess))
        totals = [builder.fmul(total, minus) for total in totals]
        results: list[Any] = []
        for r in range(self.rows):
            for t in range(self.tokens):
                place = 4 * self.lanes * len(results)
                emitter.store(builder.fmul(scales[r], factors[t]), self.table, place)
                taken = builder.fmul(zeros[r], totals[t])
                results.append(emitter.fma(scales[r], taken, sums[len(results)]))
        return results

    def _add_group(self, first: Any, i: Any, sums: list[Any]) -> list[Any]:
        """Add the products of one group, or of those in one chunk: number `i` of the vector from `first` on."""
        emitter, dot = self.emitter, self.dot
        chunks = max(1, self.group // self.codes)
        # One of the two is 1.
        done = emitter.builder.sdiv(emitter.mul(emitter.add(first, i), chunks), emitter.number(self.shared))
        pairs: list[list[tuple[list[Any], list[Any]]]] = [[] for _ in sums]
        for chunk in range(chunks):
            at = emitter.add(done, chunk)
            own = [emitter.add(base, emitter.mul(at, self.vectors * emitter.target.width)) for base in self.x_at]
            x = [dot.load_x(address) for address in own]
            for r, row in enumerate(self.row_at):
                place = emitter.add(row, emitter.mul(at, self.step))
                for ahead, level in _prefetches(self.rows):
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


@intrinsic
def _most(typingctx: Any, variant: Any) -> Any:
    """Return, as int64: rows that are walked side by side, tokens, and bytes of a vector."""
    bits, share, tokens = (length(kind) for kind in variant)
    return constants((rows_together(bits, 2**share, tokens), tokens, target().width), variant)


@jit
def _safe_scales(p: Any, job: int, rows: tuple[int, int, int], copies: int) -> tuple[int, int, int, int]:
    """Copy scales and zero points of `rows`, (first, distance, how many), each weight's scale for all its groups.

    Returns the address of the first row's scales, bytes to the next, and the same of the zero points.
    """
    first, distance, count = rows
    size = p[SCALE_BYTES] * p[REPEAT] // p[GROUPS]
    step = p[STRIDE] + p[STRIDE] // 4
    for r in range(count):
        row = first + r * distance
        expand(copies + r * step, p[job + SCALE] + row * p[SCALE_BYTES], size, p[GROUPS], p[REPEAT])
        if p[job + ZERO_STEP]:
            zeros = p[job + ZERO] + row * p[job + ZERO_ROW]
            expand(copies + r * step + p[STRIDE], zeros, 1, p[GROUPS], p[REPEAT])
    if p[job + ZERO_STEP]:
        return copies, step, copies + p[STRIDE], step
    return copies, step, p[job + ZERO], 0


@jit
def _step(
    p: Any,
    job: int,
    span: tuple[int, int, int],
    scratch: int,
    variant: tuple[Any, Any, Any],
    most: tuple[int, int, int],
) -> None:
    """Multiply the rows of `span`, (first, distance, how many count), and write their results.

    A load may reach beyond a row's last byte, and the last rows of a weight have nothing behind them: they are copied.
    """
    first, distance, count = span
    n_rows, tokens, width = most
    start, step = p[job + PACKED] + first * p[ROW_BYTES], distance * p[ROW_BYTES]
    scale, scale_step = p[job + SCALE] + first * p[SCALE_BYTES], distance * p[SCALE_BYTES]
    zero, zero_step = p[job + ZERO] + first * p[job + ZERO_ROW], distance * p[job + ZERO_ROW]
    last = count < n_rows or first + (n_rows - 1) * distance >= p[job + SAFE_ROWS]
    if last or p[REPEAT] > 1:
        scale, scale_step, zero, zero_step = _safe_scales(p, job, span, scratch + p[SPARE])
    if last:
        copies = scratch + p[COPIES]
        for r in range(count):
            copy_bytes(copies + r * p[COPY_BYTES], start + r * step, p[ROW_BYTES])
        start, step = copies, p[COPY_BYTES]
    sums = scratch + n_rows * tokens * width
    x = p[X_CODES], p[X_BYTES], p[X_SCALES], p[X_SUMS], p[STRIDE]
    form = floats(p[ZERO_FORM])
    scales = scale, scale_step, p[KIND], p[SCALE_BYTES]
    zeros = zero, zero_step, p[job + ZERO_STEP], form[0], form[1]
    _dot_rows((start, step), x, scales, zeros, p[GROUPS], (sums, scratch), variant)
    for r in range(count):
        for t in range(p[TOKENS]):
            out = floats(p[job + OUT] + 4 * (t * p[job + ROWS] + first + r * distance))
            out[0] = floats(sums)[r * tokens + t]


def decode_rows(p: Any, number: int, bits: Any, share: Any, tokens: Any) -> None:
    """Multiply 1 to 4 tokens by chunks of rows, as long as there are any: cores of unequal speed share the work.

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.places`.
    number : int
        Of this worker.
    bits, share, tokens : pointers
        Their lengths are the width of a code, the binary logarithm of the group of activations, the tokens.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    variant = bits, share, tokens
    most = _most(variant)
    taken, before = next_number(p[COUNTER]), 0
    for weight in range(p[WEIGHTS]):
        job = JOBS + weight * JOB_SIZE
        n_chunks = (p[job + ROWS] + p[CHUNK] - 1) // p[CHUNK]
        while taken - before < n_chunks:
            first = (taken - before) * p[CHUNK]
            count = min(p[CHUNK], p[job + ROWS] - first)
            distance = count // most[0]
            rest = count - distance * most[0]
            for step in range(distance + min(rest, 1)):
                whole = step < distance
                span = (first + step, distance, most[0]) if whole else (first + distance * most[0], 1, rest)
                _step(p, job, span, scratch, variant, most)
            taken = next_number(p[COUNTER])
        before += n_chunks
