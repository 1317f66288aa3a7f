"""Products of int8 or float32 tokens with rows of packed integers: a tile of rows is unpacked, and meets all tokens."""

from __future__ import annotations

import functools
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
    TILES,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_COUNTER,
    X_POINTS,
    X_SCALES,
    X_SUMS,
    X,
)
from llmq_kernels.jit import jit
from llmq_kernels.memory import clear_bytes, copy_bytes, floats, next_number, signed_octets, words
from llmq_kernels.planes import chunk_bytes, chunk_codes
from llmq_kernels.simd import F32, I32, intrinsic, target
from llmq_kernels.tile_sums import FLOATS, TileOutputs, emit_outputs, multiply_sums
from llmq_kernels.tiles import tile_rows, unpack_tile
from llmq_kernels.workers import constants, length

__all__ = [
    "TILE_BYTES",
    "encode_line",
    "encode_tokens",
    "is_float",
    "multiply_integers",
    "unpack_tiles",
]

TILE_BYTES: Final = 1024
"""Operands of a row in a tile, in bytes: whole chunks of every width; a tile takes half of a first-level cache."""


@jit
def encode_line(x: int, count: int, form: tuple[np.float32, int, int, int], line: int) -> np.int32:
    """Round float32 at address `x` to int8 at address `line`; form is (scale, zero point, lowest, highest).

    Returns
    -------
    int32
        Sum of the codes.
    """
    source, codes, total = floats(x), signed_octets(line), np.int32(0)
    scale, point = form[0], np.float32(form[1])
    low, high = np.float32(form[2]), np.float32(form[3])
    for i in range(count):
        code = encode_input(source[i], scale, point, low, high)
        codes[i] = np.int8(code)
        total = np.int32(total + code)
    return total


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
    token = next_number(p[X_COUNTER])
    while token < p[TOKENS]:
        if is_float(source)[0]:
            form = scales[token], points[token], p[LOWEST], p[HIGHEST]
            total = encode_line(p[X] + 4 * token * p[COLUMNS], p[COLUMNS], form, line)
        else:
            copy_bytes(line, p[X] + token * p[COLUMNS], p[COLUMNS])
            total = _sum_codes(line, p[COLUMNS])
        sums[token] = np.int32(total - p[COLUMNS] * points[token])
        arrange(line, p[PADDED], p[X_CODES] + token * p[X_BYTES], planes, run, size)
        token = next_number(p[X_COUNTER])


class _Outputs(TileOutputs):
    """Outputs of tokens, in rows; their items are addresses of the tokens' sums, zero points and scales."""

    def finished(self, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
        """Outputs of some tokens."""
        emitter, builder = self.emitter, self.emitter.builder
        real = ir.VectorType(F32, self.lanes)
        kinds = [self.kind] * 3 + ([real] * 2 if self.floating else [])
        forms = [
            [emitter.load(at, kind, v * self.width) for at, kind in zip(self.forms, kinds, strict=False)]
            for v in range(self.vectors)
        ]
        results = []
        for row, totals in zip(rows, sums, strict=True):
            kinds = [I32, I32, F32] if self.floating else [I32, I32]
            items = zip(self.items, kinds, strict=False)
            own = [emitter.splat(emitter.load(emitter.add(at, emitter.mul(row, 4)), kind)) for at, kind in items]
            finished = []
            for form, total in zip(forms, totals, strict=True):
                whole = total
                for k in (0, 1):
                    whole = builder.add(whole, builder.mul(form[k], own[k]))
                whole = builder.add(whole, form[2])
                if self.floating:
                    scaled = builder.fmul(emitter.to_float(whole), builder.fmul(own[2], form[3]))
                    whole = builder.fadd(scaled, form[4])
                finished.append(whole)
            results.append(finished)
        return results


@intrinsic
def _multiply_outputs(
    typingctx: Any,
    tile: Any,
    rows: Any,
    sums: Any,
    counts: Any,
    forms: Any,
    items: Any,
    out: Any,
    bits: Any,
    side: Any,
    factor: Any,
    result: Any,
) -> Any:
    """Add the last products of a tile and some tokens, and make outputs: see `emit_outputs` and `_Outputs`."""
    arguments = (tile, rows, sums, counts, forms, items, out, bits, side, factor, result)
    return types.void(*arguments), functools.partial(emit_outputs, _Outputs)


@intrinsic
def _constants(typingctx: Any, bits: Any) -> Any:
    """Return, as int64: rows of a tile, codes and bytes of a chunk, bytes of an operand."""
    n_bits, goal = length(bits), target()
    chunk = chunk_codes(n_bits, goal.width), chunk_bytes(n_bits, goal.width)
    return constants((tile_rows(goal), *chunk, goal.operand(n_bits)), bits)


@jit
def _rows_of(p: Any, first: int, count: int, scratch: int, bits: Any) -> tuple[int, int]:
    """Where whole chunks of the rows of a tile can be read, and bytes from one row to the next."""
    start, step = p[PACKED] + first * p[ROW_BYTES], p[ROW_BYTES]
    if count == _constants(bits)[0] and first + count <= p[SAFE_ROWS]:
        return start, step
    for r in range(count):
        copy_bytes(scratch + p[COPIES] + r * p[COPY_BYTES], start + r * step, p[ROW_BYTES])
    return scratch + p[COPIES], p[COPY_BYTES]


@jit
def _multiply_rows(p: Any, rows: tuple[int, int], scratch: int, variant: tuple[Any, Any, Any, Any]) -> None:
    """Multiply one tile of `rows`, (first, how many), by all tokens."""
    first, count = rows
    bits, side, factor, result = variant
    n_rows, codes, chunk, size = _constants(bits)
    start, step = (0, 0) if p[TILES] else _rows_of(p, first, count, scratch, bits)
    tile = scratch + p[TILE]
    # A line of zeros, then sums: only rows longer than a block need them cleared.
    line, sums = scratch + p[SUMS], scratch + p[SUMS] + 4 * n_rows
    clear_bytes(line, 4 * n_rows)
    block = TILE_BYTES // size
    before, last = (line, 0), (p[PADDED] - 1) // block * block
    if last:
        clear_bytes(sums, 4 * n_rows * p[TOKENS])
        before = sums, 4 * n_rows
    for column in range(0, last + 1, block):
        columns = min(block, p[PADDED] - column)
        if p[TILES]:
            tile = p[TILES] + (first * p[PADDED] + n_rows * column) * size
        else:
            unpack_tile((start + column // codes * chunk, step), columns // codes, tile, bits)
        x, counts = (p[X_CODES] + size * column, p[X_BYTES]), (columns * size // 4, p[TOKENS])
        if column < last:
            multiply_sums(tile, x, sums, counts, bits, side)
            continue
        # Outputs of a ragged tile take the place of sums first.
        out = (p[OUT] + 4 * first, 4 * p[ROWS]) if count == n_rows else (sums, 4 * n_rows)
        forms, tokens = (p[ROW_FORMS] + 4 * first, p[FORM_BYTES]), (p[X_SUMS], p[X_POINTS], p[X_SCALES])
        begin = before[0], before[1], sums
        _multiply_outputs(tile, x, begin, counts, forms, tokens, out, bits, side, factor, result)
    if count < n_rows:
        for token in range(p[TOKENS]):
            copy_bytes(p[OUT] + 4 * (token * p[ROWS] + first), sums + 4 * n_rows * token, 4 * count)


def unpack_tiles(p: Any, number: int, bits: Any) -> None:
    """Unpack all tiles of a weight, to be kept, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.integer_places`; `TILES` is room for whole tiles, `padded` columns each.
    number : int
        Of this worker.
    bits : pointer
        Its length is the width of a code.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    n_rows, codes, _chunk, size = _constants(bits)
    taken = next_number(p[COUNTER])
    while taken * n_rows < p[ROWS]:
        first = taken * n_rows
        rows = _rows_of(p, first, min(n_rows, p[ROWS] - first), scratch, bits)
        unpack_tile(rows, p[PADDED] // codes, p[TILES] + first * p[PADDED] * size, bits)
        taken = next_number(p[COUNTER])


def multiply_integers(p: Any, number: int, bits: Any, side: Any, factor: Any, result: Any) -> None:
    """Multiply all tokens by tiles of rows, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.integer_places`.
    number : int
        Of this worker.
    bits, side, factor, result : pointers
        See `_multiply_outputs`; `side` is `TILE_IS_CODES`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    n_rows = _constants(bits)[0]
    taken = next_number(p[COUNTER])
    while taken * n_rows < p[ROWS]:
        first = taken * n_rows
        _multiply_rows(p, (first, min(n_rows, p[ROWS] - first)), scratch, (bits, side, factor, result))
        taken = next_number(p[COUNTER])
