"""Products of a few tokens with packed rows: each row is read once, from where it lies, at the speed of memory.

A row is walked chunk by chunk (see `llmq_kernels.planes`). The integer sums of each group of activations become float
with one product of scales, computed for the whole row beforehand (see `llmq_kernels.scales`). Several rows are walked
side by side, far apart from each other: one stream of addresses does not keep the memory busy.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types

from llmq_kernels.chunks import adds_words, chunks_of, new_chunks
from llmq_kernels.jit import jit
from llmq_kernels.memory import copy_bytes, floats, next_number, prefetch
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
from llmq_kernels.scales import multiply_scales, multiply_whole, whole_groups
from llmq_kernels.simd import F32, Emitter, intrinsic, target
from llmq_kernels.workers import constants, length

__all__ = ["decode_rows", "rows_together"]

_AHEAD: Final = 512
"""Bytes of a row between what is read and what is fetched into the caches meanwhile."""

_KEPT: Final = 4
"""Vectors of activations that registers hold beside all else; more are loaded for each row, lest LLVM spill them."""

_SEVERAL: Final = 2
"""Rows that are walked side by side for more than one token."""


def rows_together(tokens: int) -> int:
    """Rows that are walked side by side, by number of tokens: for one token more where 32 registers hold the sums."""
    if tokens > 1:
        return _SEVERAL
    return 6 if target().width == 64 else 4


@intrinsic
def _dot_rows(
    typingctx: Any, place: Any, x: Any, factors: Any, n_groups: Any, out: Any, bits: Any, share: Any, tokens: Any
) -> Any:
    """Multiply a few packed rows by a few tokens.

    Parameters
    ----------
    place : (int64, int64)
        Address of the first row, bytes from one to the next.
    x : (int64, int64)
        Address of the first token's activations, int8 in plane order, and bytes to the next.
    factors : (int64, int64)
        Address of the products of scales, float32 (rows, tokens, stride), and bytes of one stride.
    n_groups : int64
        Groups of activations in a row.
    out : int64
        Address of the results, float32 (rows, tokens).
    bits, share, tokens : pointers
        Their lengths are the width of a code, the binary logarithm of the group of activations, the tokens.
    """
    signature = types.void(place, x, factors, n_groups, out, bits, share, tokens)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        n_bits, n_share, n_tokens = (length(signature.args[i]) for i in (5, 6, 7))
        emitter = Emitter(builder, target())
        places = [[builder.extract_value(pair, i) for i in (0, 1)] for pair in args[:3]]
        _emit_rows(emitter, (n_bits, 2**n_share, n_tokens), places, args[3], args[4])
        return context.get_dummy_value()

    return signature, emit


def _emit_rows(emitter: Emitter, variant: tuple[int, int, int], places: list[list[Any]], count: Any, out: Any) -> None:
    bits, group, tokens = variant
    rows, lanes = rows_together(tokens), emitter.target.lanes
    codes, step, vectors = chunks_of(bits, emitter.target)
    chunks, shared = max(1, group // codes), max(1, codes // group)
    row_at = [emitter.add(places[0][0], emitter.mul(places[0][1], r)) for r in range(rows)]
    x_at = [emitter.add(places[1][0], emitter.mul(places[1][1], t)) for t in range(tokens)]
    factor_at = [emitter.add(places[2][0], emitter.mul(places[2][1], i)) for i in range(rows * tokens)]
    zero = ir.Constant(ir.VectorType(F32, lanes), None)
    dot = new_chunks(emitter, bits)

    def body(i: Any, sums: list[Any]) -> list[Any]:
        done = emitter.builder.sdiv(i, emitter.number(shared)) if shared > 1 else emitter.mul(i, chunks)
        pairs: list[list[tuple[list[Any], list[Any]]]] = [[] for _ in range(rows * tokens)]
        for chunk in range(chunks):
            at = emitter.add(done, chunk)
            own = [emitter.add(base, emitter.mul(at, vectors * emitter.target.width)) for base in x_at]
            x = [dot.load_x(address) for address in own]
            for r in range(rows):
                place = emitter.add(row_at[r], emitter.mul(at, step))
                emitter.prefetch(place, _AHEAD)
                planes = dot.load_planes(place)
                if vectors * tokens > _KEPT:
                    x = [dot.load_x(emitter.opaque(address)) for address in own]
                for t in range(tokens):
                    pairs[r * tokens + t].append((planes, x[t]))
        new = []
        for k, own in enumerate(pairs):
            factor = _factor(emitter, emitter.add(factor_at[k], emitter.mul(i, 4)), shared)
            new.append(emitter.fma(emitter.to_float(dot.sum_of(own)), factor, sums[k]))
        return new

    sums = emitter.loop(count, shared, [zero] * (rows * tokens), body)
    for k, total in enumerate(sums):
        found = emitter.sum_lanes(total)
        emitter.store(emitter.builder.fmul(found, ir.Constant(F32, 1 / dot.excess)), out, 4 * k)


def _factor(emitter: Emitter, address: Any, shared: int) -> Any:
    """One factor for all lanes, or several, each for its part of them."""
    if shared == 1:
        return emitter.splat(emitter.load(address, F32))
    lanes = emitter.target.lanes
    several = emitter.load(address, ir.VectorType(F32, shared))
    if shared == lanes or not adds_words(emitter.target):
        return emitter.shuffle(several, None, [lane * shared // lanes for lane in range(lanes)])
    # Repeated by the load, they need not cross the halves of a register, which takes AVX2 three steps.
    repeated = emitter.opaque(emitter.shuffle(several, None, [lane % shared for lane in range(lanes)]))
    return emitter.shuffle(repeated, None, [lane // 4 * 4 + lane * shared // lanes for lane in range(lanes)])


@intrinsic
def _most(typingctx: Any, tokens: Any) -> Any:
    """Return, as int64: rows that are walked side by side, and tokens."""
    return constants((rows_together(length(tokens)), length(tokens)), tokens)


@intrinsic
def _side_by_side(typingctx: Any, first: Any, step: Any, tokens: Any) -> Any:
    """Return where each of the rows begins that are walked side by side: `first`, `first + step`..."""
    rows = rows_together(length(tokens))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        places = [emitter.add(args[0], emitter.mul(args[1], row)) for row in range(rows)]
        return context.make_tuple(builder, signature.return_type, places)

    return types.UniTuple(types.int64, rows)(first, step, tokens), emit


@jit
def _scale_rows(p: Any, job: int, span: tuple[int, int, int], scratch: int, tokens: Any, most: tuple[int, int]) -> None:
    """Multiply the scales of `span` by those of the tokens; write what the zero points take off behind the products."""
    first, distance, count = span
    n_rows, n_tokens = most
    form = floats(p[ZERO_FORM])[0], floats(p[ZERO_FORM])[1]
    results = floats(scratch + n_rows * n_tokens * p[STRIDE])
    scale, scale_step = p[job + SCALE] + first * p[SCALE_BYTES], distance * p[SCALE_BYTES]
    zero, zero_step = p[job + ZERO] + first * p[job + ZERO_ROW], distance * p[job + ZERO_ROW]
    for r in range(count):
        for ahead in range(p[SCALE_BYTES], 2 * p[SCALE_BYTES], 64):
            prefetch(scale + r * scale_step + ahead)
    done = whole_groups(p[GROUPS], p[REPEAT]) if count == n_rows else 0
    scales, zeros = _side_by_side(scale, scale_step, tokens), _side_by_side(zero, zero_step, tokens)
    # What is left of each row is taken by itself.
    beyond = scale + done * (p[SCALE_BYTES] * p[REPEAT] // p[GROUPS]), zero + done * p[job + ZERO_STEP]
    for t in range(n_tokens):
        x = p[X_SCALES] + t * p[STRIDE], p[X_SUMS] + t * p[STRIDE]
        outs = _side_by_side(scratch + t * p[STRIDE], n_tokens * p[STRIDE], tokens)
        taken = multiply_whole((scales, p[KIND]), (zeros, p[job + ZERO_STEP]), form, done, x, outs)
        for r in range(count):
            results[r * n_tokens + t] = taken[r]
            if done < p[GROUPS]:
                rest = beyond[0] + r * scale_step, p[KIND], p[GROUPS] - done, p[REPEAT]
                points = beyond[1] + r * zero_step, p[job + ZERO_STEP]
                own = x[0] + 4 * done, x[1] + 4 * done
                out = scratch + (r * n_tokens + t) * p[STRIDE] + 4 * done
                results[r * n_tokens + t] += multiply_scales(rest, points, form, own, scratch + p[SPARE], out)


@jit
def _step(
    p: Any, job: int, span: tuple[int, int, int], scratch: int, variant: tuple[Any, Any, Any], most: tuple[int, int]
) -> None:
    """Multiply the rows of `span`, (first, distance, how many count), and write their results.

    A load may reach beyond a row's last byte, and the last rows of a weight have nothing behind them: they are copied.
    """
    first, distance, count = span
    n_rows, tokens = most
    start, step = p[job + PACKED] + first * p[ROW_BYTES], distance * p[ROW_BYTES]
    if count < n_rows or first + (n_rows - 1) * distance >= p[job + SAFE_ROWS]:
        copies = scratch + p[COPIES]
        for r in range(count):
            copy_bytes(copies + r * p[COPY_BYTES], start + r * step, p[ROW_BYTES])
        start, step = copies, p[COPY_BYTES]
    results = floats(scratch + n_rows * tokens * p[STRIDE])
    _scale_rows(p, job, span, scratch, variant[2], most)
    sums = scratch + n_rows * tokens * (p[STRIDE] + 4)
    x = p[X_CODES], p[X_BYTES]
    _dot_rows((start, step), x, (scratch, p[STRIDE]), p[GROUPS], sums, variant[0], variant[1], variant[2])
    for r in range(count):
        for t in range(p[TOKENS]):
            out = floats(p[job + OUT] + 4 * (t * p[job + ROWS] + first + r * distance))
            out[0] = floats(sums)[r * tokens + t] - results[r * tokens + t]


def decode_rows(p: Any, number: int, bits: Any, share: Any, tokens: Any) -> None:
    """Multiply 1 to 4 tokens by chunks of rows, as long as there are any: cores of unequal speed share the work.

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.places`.
    number : int
        Of this worker.
    bits, share, tokens : pointers
        See `_dot_rows`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    most = _most(tokens)
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
                _step(p, job, span, scratch, (bits, share, tokens), most)
            taken = next_number(p[COUNTER])
        before += n_chunks
