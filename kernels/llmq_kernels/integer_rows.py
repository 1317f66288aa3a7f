"""Products of int8 or float32 tokens with rows of packed integers: a tile of rows is unpacked, and meets all tokens."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.activations import arrange
from llmq_kernels.inputs import encode_input
from llmq_kernels.integer_places import (
    COLUMNS,
    COPIES,
    COPY_BYTES,
    COUNTER,
    FORM_BYTES,
    HIGHEST,
    LOWEST,
    OUT,
    PACKED,
    PADDED,
    ROW_BYTES,
    ROW_FORMS,
    ROWS,
    SAFE_ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SPARE,
    SUMS,
    TILE,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_POINTS,
    X_SCALES,
    X_SUMS,
    X,
)
from llmq_kernels.jit import jit
from llmq_kernels.memory import clear_bytes, copy_bytes, floats, next_number, signed_octets, words
from llmq_kernels.planes import chunk_bytes, chunk_codes
from llmq_kernels.prefill import BLOCK, tile_rows, tile_shape, unpack_tile
from llmq_kernels.simd import F32, I32, Emitter, intrinsic, target
from llmq_kernels.tile_sums import multiply_sums
from llmq_kernels.workers import constants, length

__all__ = ["FLOATS", "INTEGERS", "encode_line", "encode_tokens", "is_float", "multiply_integers"]

INTEGERS: Final = 1
FLOATS: Final = 2
"""Of workers: inputs are int8 or float32, outputs int32 or float32."""


@jit
def encode_line(x: int, count: int, form: tuple[np.float32, int, int, int], line: int) -> None:
    """Round float32 at address `x` to int8 at address `line`; form is (scale, zero point, lowest, highest)."""
    source, codes = floats(x), signed_octets(line)
    scale, point = form[0], np.float32(form[1])
    low, high = np.float32(form[2]), np.float32(form[3])
    for i in range(count):
        codes[i] = encode_input(source[i], scale, point, low, high)


@jit
def _sum_codes(line: int, count: int) -> np.int32:
    codes, total = signed_octets(line), np.int32(0)
    for i in range(count):
        total = np.int32(total + np.int32(codes[i]))
    return total


@intrinsic
def is_float(typingctx: Any, kind: Any) -> Any:
    """Whether a variant is `FLOATS`, as a constant."""
    return constants((int(length(kind) == FLOATS),), kind)


def encode_tokens(p: Any, number: int, planes: Any, run: Any, size: Any, source: Any) -> None:
    """Bring tokens into the form that tiles meet, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.integer_places`.
    number : int
        Of this worker.
    planes, run, size : pointers
        See `llmq_kernels.activations.arrange`.
    source : pointer
        Its length is `INTEGERS` or `FLOATS`.
    """
    line = p[SCRATCH] + number * p[SCRATCH_BYTES] + p[SPARE]
    clear_bytes(line + p[COLUMNS], p[PADDED] - p[COLUMNS])
    points, sums, scales = words(p[X_POINTS]), words(p[X_SUMS]), floats(p[X_SCALES])
    token = next_number(p[COUNTER])
    while token < p[TOKENS]:
        if is_float(source)[0]:
            form = scales[token], points[token], p[LOWEST], p[HIGHEST]
            encode_line(p[X] + 4 * token * p[COLUMNS], p[COLUMNS], form, line)
        else:
            copy_bytes(line, p[X] + token * p[COLUMNS], p[COLUMNS])
        sums[token] = np.int32(_sum_codes(line, p[COLUMNS]) - p[COLUMNS] * points[token])
        arrange(line, p[PADDED], p[X_CODES] + token * p[X_BYTES], planes, run, size)
        token = next_number(p[COUNTER])


@intrinsic
def _finish(typingctx: Any, sums: Any, forms: Any, tokens: Any, out: Any, factor: Any, result: Any) -> Any:
    """Make outputs of the sums of a tile.

    Parameters
    ----------
    sums : int64
        Address of int32 (tokens, lanes of a tile).
    forms : (int64, int64)
        Address of the first row's numbers, and bytes from one kind of number to the next (see `RowForms`).
    tokens : (int64, int64, int64, int64)
        How many, and addresses of their sums, zero points and scales.
    out : (int64, int64)
        Address of the first token's outputs for these rows, whole vectors, and bytes from one token to the next.
    factor, result : pointers
        Their lengths are what sums are multiplied by, and `INTEGERS` or `FLOATS`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        lanes, width = emitter.target.lanes, emitter.target.width
        whole, real = ir.VectorType(I32, lanes), ir.VectorType(F32, lanes)
        doubled, floating = length(signature.args[4]) == 2, length(signature.args[5]) == FLOATS
        at, step = (builder.extract_value(args[1], i) for i in (0, 1))
        count, *items = (builder.extract_value(args[2], i) for i in range(4))
        form_at = [emitter.add(at, emitter.mul(step, kind)) for kind in range(5)]

        def body(token: Any, values: list[Any]) -> list[Any]:
            place = emitter.mul(token, 4)
            kinds = (I32, I32, F32) if floating else (I32, I32)
            own = [emitter.splat(emitter.load(emitter.add(items[i], place), kind)) for i, kind in enumerate(kinds)]
            source = emitter.add(args[0], emitter.mul(token, tile_rows(emitter.target) * 4))
            to = emitter.add(builder.extract_value(args[3], 0), emitter.mul(token, builder.extract_value(args[3], 1)))
            for v in range(tile_shape(emitter.target)[0]):
                form = [emitter.load(form_at[i], whole if i < 3 else real, v * width) for i in range(5)]
                total = emitter.load(source, whole, v * width)
                total = builder.add(total, total) if doubled else total
                for i in (0, 1):
                    total = builder.add(total, builder.mul(form[i], own[i]))
                total = builder.add(total, form[2])
                if floating:
                    scaled = builder.fmul(emitter.to_float(total), builder.fmul(own[2], form[3]))
                    total = builder.fadd(scaled, form[4])
                emitter.store(total, to, v * width)
            return values

        emitter.loop(count, 1, [], body)
        return context.get_dummy_value()

    return types.void(sums, forms, tokens, out, factor, result), emit


@intrinsic
def _constants(typingctx: Any, bits: Any) -> Any:
    """Return, as int64: rows of a tile, codes and bytes of a chunk, bytes of an operand."""
    n_bits, goal = length(bits), target()
    chunk = chunk_codes(n_bits, goal.width), chunk_bytes(n_bits, goal.width)
    return constants((tile_rows(goal), *chunk, goal.operand(n_bits)), bits)


@jit
def _multiply_rows(p: Any, rows: tuple[int, int], scratch: int, variant: tuple[Any, Any, Any, Any]) -> None:
    """Multiply one tile of `rows`, (first, how many), by all tokens."""
    first, count = rows
    bits, side, factor, result = variant
    n_rows, codes, chunk, size = _constants(bits)
    start, step = p[PACKED] + first * p[ROW_BYTES], p[ROW_BYTES]
    if count < n_rows or first + n_rows > p[SAFE_ROWS]:
        for r in range(count):
            copy_bytes(scratch + p[COPIES] + r * p[COPY_BYTES], start + r * step, p[ROW_BYTES])
        start, step = scratch + p[COPIES], p[COPY_BYTES]
    sums, tile = scratch + p[SUMS], scratch + p[TILE]
    clear_bytes(sums, 4 * n_rows * p[TOKENS])
    for column in range(0, p[PADDED], BLOCK):
        columns = min(BLOCK, p[PADDED] - column)
        unpack_tile((start + column // codes * chunk, step), columns // codes, tile, bits)
        x = p[X_CODES] + size * column, p[X_BYTES]
        multiply_sums(tile, x, sums, (columns * size // 4, p[TOKENS]), bits, side)
    tokens = p[TOKENS], p[X_SUMS], p[X_POINTS], p[X_SCALES]
    forms = p[ROW_FORMS] + 4 * first, p[FORM_BYTES]
    if count == n_rows:
        _finish(sums, forms, tokens, (p[OUT] + 4 * first, 4 * p[ROWS]), factor, result)
        return
    # Of a ragged tile results replace the sums first.
    _finish(sums, forms, tokens, (sums, 4 * n_rows), factor, result)
    for token in range(p[TOKENS]):
        copy_bytes(p[OUT] + 4 * (token * p[ROWS] + first), sums + 4 * n_rows * token, 4 * count)


def multiply_integers(p: Any, number: int, bits: Any, side: Any, factor: Any, result: Any) -> None:
    """Multiply all tokens by tiles of rows, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.integer_places`.
    number : int
        Of this worker.
    bits, side, factor, result : pointers
        See `multiply_sums` and `_finish`; `side` is `TILE_IS_CODES`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    n_rows = _constants(bits)[0]
    taken = next_number(p[COUNTER])
    while taken * n_rows < p[ROWS]:
        first = taken * n_rows
        _multiply_rows(p, (first, min(n_rows, p[ROWS] - first)), scratch, (bits, side, factor, result))
        taken = next_number(p[COUNTER])
