"""Convolutions in tiles of pixels: a tile gathers what pixels meet, and all filters meet the tile."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.convolution_places import (
    DOWN,
    FILTERS,
    GROUP_BYTES,
    GROUPS,
    LINE,
    OFFSETS,
    ONES,
    OPERANDS,
    OUT_WIDTH,
    PART,
    PIXELS,
    RUNS,
    TURN,
)
from llmq_kernels.integer_places import (
    COLUMNS,
    COUNTER,
    FORM_BYTES,
    OUT,
    PADDED,
    ROW_FORMS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SUMS,
    TILE,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_POINTS,
    X_SCALES,
)
from llmq_kernels.integer_rows import TILE_BYTES
from llmq_kernels.jit import jit
from llmq_kernels.memory import clear_bytes, copy_bytes, floats, longs, next_number, words
from llmq_kernels.simd import F32, I8, I16, I32, I64, Emitter, intrinsic, target
from llmq_kernels.tile_sums import TileOutputs, emit_outputs, multiply_sums
from llmq_kernels.tiles import tile_rows
from llmq_kernels.workers import constants, length

__all__ = ["convolve_tiles"]


@intrinsic
def _gather_tile(typingctx: Any, x: Any, offsets: Any, runs: Any, steps: Any, tile: Any, bits: Any) -> Any:
    """Gather what the pixels of a tile meet.

    Lanes that read neighbouring operands make a run. Each run writes a whole tile's width from its first lane on; what
    goes beyond its last lane is written anew, by the next run or the next step.

    Parameters
    ----------
    x : int64
        Address that offsets and runs count from.
    offsets : int64
        Address of int64 (operands,), bytes.
    runs : (int64, int64)
        Address of int64 (runs, 2), bytes from `x` on and from the beginning of a step's operands on; and how many.
    steps : int64
    tile : int64
        Address of the result (steps, lanes, 4 bytes), and room for one step more.
    bits : pointer
        Its length is the width of a code.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        size, lanes = emitter.target.operand(length(signature.args[5])), tile_rows(emitter.target)
        kind, each = ir.VectorType(I16 if size == 2 else I8, lanes), 4 // size
        first, count = (builder.extract_value(args[2], i) for i in (0, 1))

        def step(number: Any, values: list[Any]) -> list[Any]:
            at = emitter.add(args[1], emitter.mul(number, 8 * each))
            bases = [emitter.add(args[0], emitter.load(at, I64, 8 * i)) for i in range(each)]
            to = emitter.add(args[4], emitter.mul(number, 4 * lanes))

            def run(i: Any, values: list[Any]) -> list[Any]:
                place = emitter.add(first, emitter.mul(i, 16))
                source, lane = emitter.load(place, I64), emitter.load(place, I64, 8)
                parts = [emitter.load(emitter.add(base, source), kind) for base in bases]
                while len(parts) > 1:
                    parts = [_interleave(emitter, a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
                emitter.store(parts[0], emitter.add(to, lane))
                return values

            emitter.loop(count, 1, [], run)
            return values

        emitter.loop(args[3], 1, [], step)
        return context.get_dummy_value()

    return types.void(x, offsets, runs, steps, tile, bits), emit


def _interleave(emitter: Emitter, a: Any, b: Any) -> Any:
    """Elements of two vectors in turn, as one vector of elements of twice the size."""
    count = a.type.count
    pairs = emitter.shuffle(a, b, [i // 2 + count * (i % 2) for i in range(2 * count)])
    return emitter.builder.bitcast(pairs, ir.VectorType(ir.IntType(2 * a.type.element.width), count))


class _Outputs(TileOutputs):
    """Outputs of filters, in rows.

    Their items are zero point times columns, zero point and scale of the image, and the address of the sums of inputs,
    int32 (lanes,).
    """

    def finished(self, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
        """Outputs of some filters."""
        emitter, builder = self.emitter, self.emitter.builder
        shifted, point, scale, line = self.items
        shifted, point = (builder.trunc(value, I32) for value in (shifted, point))
        inputs = [emitter.load(line, self.kind, v * self.width) for v in range(self.vectors)]
        results = []
        for row, totals in zip(rows, sums, strict=True):
            own = [emitter.add(at, emitter.mul(row, 4)) for at in self.forms]
            shift, times, base = (emitter.load(own[k], I32) for k in range(3))
            base = builder.add(base, builder.sub(builder.mul(times, point), builder.mul(shift, shifted)))
            shift, base = emitter.splat(shift), emitter.splat(base)
            if self.floating:
                scaling = emitter.splat(builder.fmul(scale, emitter.load(own[3], F32)))
                after = emitter.splat(emitter.load(own[4], F32))
            finished = []
            for total, met in zip(totals, inputs, strict=True):
                whole = builder.add(builder.add(total, base), builder.mul(shift, met))
                if self.floating:
                    whole = builder.fadd(builder.fmul(emitter.to_float(whole), scaling), after)
                finished.append(whole)
            results.append(finished)
        return results


@intrinsic
def _multiply_filters(
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
    """Add the last products of a tile and some filters, and make outputs: see `emit_outputs` and `_Outputs`."""
    arguments = (tile, rows, sums, counts, forms, items, out, bits, side, factor, result)
    return types.void(*arguments), functools.partial(emit_outputs, _Outputs)


@intrinsic
def _constants(typingctx: Any, bits: Any) -> Any:
    """Return, as int64: lanes of a tile, bytes of an operand."""
    return constants((tile_rows(target()), target().operand(length(bits))), bits)


@jit
def _find_runs(p: Any, pixel: int, lanes: int, size: int, runs: Any) -> int:
    """Find the runs of the tile that begins at `pixel`; return how many there are."""
    lane, found = 0, 0
    while lane < lanes and pixel < p[PIXELS]:
        row, column = divmod(pixel, p[OUT_WIDTH])
        runs[2 * found] = (row * p[DOWN] + column) * size
        runs[2 * found + 1] = 4 * lane
        count = min(p[OUT_WIDTH] - column, lanes - lane)
        pixel, lane, found = pixel + count, lane + count, found + 1
    return found


@jit
def _convolve_tile(
    p: Any, x: int, place: tuple[int, int, int, int], scratch: int, variant: tuple[Any, Any, Any, Any]
) -> None:
    """Convolve the tile of a pixel with some filters; `place` is (image, first filter, how many, pixel)."""
    image, first, count, pixel = place
    bits, side, factor, result = variant
    lanes, size = _constants(bits)
    runs = scratch + p[RUNS], _find_runs(p, pixel, lanes, size, longs(scratch + p[RUNS]))
    line, tile = scratch + p[LINE], scratch + p[TILE]
    # A line of zeros, then sums: only filters longer than a block need them cleared.
    zeros, sums = scratch + p[SUMS], scratch + p[SUMS] + 4 * lanes
    clear_bytes(zeros, 4 * lanes)
    clear_bytes(line, 4 * lanes)
    block = TILE_BYTES // size
    before, last = (zeros, 0), (p[PADDED] - 1) // block * block
    if last:
        clear_bytes(sums, 4 * lanes * count)
        before = sums, 4 * lanes
    for column in range(0, last + 1, block):
        steps = min(block, p[PADDED] - column) * size // 4
        _gather_tile(x, p[OFFSETS] + 8 * column, runs, steps, tile, bits)
        rows, counts = (p[OPERANDS] + (first * p[PADDED] + column) * size, p[PADDED] * size), (steps, count)
        if p[ONES]:
            multiply_sums(tile, (p[ONES] + column * size, 0), line, (steps, 1), bits, side)
        if column < last:
            multiply_sums(tile, rows, sums, counts, bits, side)
            continue
        point = np.int64(words(p[X_POINTS])[image])
        items = point * p[COLUMNS], point, floats(p[X_SCALES])[image], line
        # Outputs of a ragged tile take the place of sums first.
        out = (sums, 4 * lanes) if pixel + lanes > p[PIXELS] else (_output(p, image, first, pixel), 4 * p[PIXELS])
        begin, forms = (before[0], before[1], sums), (p[ROW_FORMS] + 4 * first, p[FORM_BYTES])
        _multiply_filters(tile, rows, begin, counts, forms, items, out, bits, side, factor, result)
    if pixel + lanes > p[PIXELS]:
        to = _output(p, image, first, pixel)
        for row in range(count):
            copy_bytes(to + 4 * row * p[PIXELS], sums + 4 * lanes * row, 4 * (p[PIXELS] - pixel))


@jit
def _output(p: Any, image: int, first: int, pixel: int) -> int:
    """Address of a pixel of the outputs of a filter."""
    return int(p[OUT] + 4 * ((image * p[ROWS] + first) * p[PIXELS] + pixel))


def convolve_tiles(p: Any, number: int, bits: Any, side: Any, factor: Any, result: Any) -> None:
    """Convolve planes with filters, as long as there are tiles: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.convolution_places`.
    number : int
        Of this worker.
    bits, side, factor, result : pointers
        See `_multiply_filters`; `side` is `TILE_IS_INPUTS`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    lanes, _size = _constants(bits)
    turn = p[TURN] * lanes
    turns, parts = (p[PIXELS] + turn - 1) // turn, (p[FILTERS] + p[PART] - 1) // p[PART]
    taken = next_number(p[COUNTER])
    while taken < p[TOKENS] * p[GROUPS] * parts * turns:
        rest, own = divmod(taken, turns)
        rest, part = divmod(rest, parts)
        image, group = divmod(rest, p[GROUPS])
        x = p[X_CODES] + image * p[X_BYTES] + group * p[GROUP_BYTES]
        first = part * p[PART]
        count = min(p[PART], p[FILTERS] - first)
        for pixel in range(own * turn, min((own + 1) * turn, p[PIXELS]), lanes):
            place = image, group * p[FILTERS] + first, count, pixel
            _convolve_tile(p, x, place, scratch, (bits, side, factor, result))
        taken = next_number(p[COUNTER])
