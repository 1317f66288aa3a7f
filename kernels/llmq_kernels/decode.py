"""Products of a few tokens with packed rows: each row is read once, from where it lies, at the speed of memory.

Chunks of rows are handed out to workers; `llmq_kernels.row_kernels` has the products of a few rows at a time.
"""

from __future__ import annotations

from typing import Any

from numba.core import types

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
from llmq_kernels.row_kernels import row_kernel, rows_together
from llmq_kernels.simd import Emitter, intrinsic, target
from llmq_kernels.workers import constants, length

__all__ = ["decode_rows"]


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
        row_kernel(Emitter(builder, target()), (bits, 2**share, tokens), parts).emit(args[4])
        return context.get_dummy_value()

    return signature, emit


@intrinsic
def _most(typingctx: Any, variant: Any) -> Any:
    """Return, as int64: rows that are walked side by side, tokens, and bytes of a vector."""
    bits, _, tokens = (length(kind) for kind in variant)
    return constants((rows_together(bits, tokens), tokens, target().width), variant)


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
