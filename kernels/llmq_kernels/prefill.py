"""Products of many tokens with packed rows: a tile of rows (`llmq_kernels.tiles`) meets all tokens.

The tile, a part of the columns at a time, stays in the first-level cache, and the sums of its rows, float32 (tokens,
rows), in the second.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.jit import jit
from llmq_kernels.memory import clear_bytes, copy_bytes, floats, longs, next_number, octets, prefetch
from llmq_kernels.places import (
    COPIES,
    COPY_BYTES,
    COUNTER,
    GROUP,
    GROUPS,
    JOB_SIZE,
    JOBS,
    KIND,
    OUT,
    PACKED,
    PADDED,
    REPEAT,
    ROW_BYTES,
    ROWS,
    SAFE_ROWS,
    SCALE,
    SCALE_BYTES,
    SCRATCH,
    SCRATCH_BYTES,
    SPARE,
    STOP,
    STRIDE,
    TILE,
    TOKENS,
    TOTALS,
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
from llmq_kernels.planes import chunk_bytes, chunk_codes
from llmq_kernels.scales import widen_scales
from llmq_kernels.simd import F32, I32, Emitter, intrinsic, target, tile_accumulator
from llmq_kernels.tiles import BLOCK, tile_rows, tile_shape, unpack_tile
from llmq_kernels.workers import constants, length

__all__ = ["prefill_rows", "sums_are_whole"]

_STEPS: Final = {"avx512vnni": 4}
"""Steps of four codes that are emitted one after the other: of more, LLVM would move the loads up and spill them."""

_BURSTS: Final = 2
"""Bursts of an `Accumulator` that are emitted one after the other."""

_LATE: Final = 16
"""Tokens that meet a tile after the columns of the next one have been asked for."""


def sums_are_whole(bits: int, *, symmetric: bool) -> bool:
    """Whether what one zero point for all takes off a group is an integer, from which its sum begins.

    Of one bit it is half the sum of the activations' codes.
    """
    return symmetric and bits > 1


# --- multiplying ------------------------------------------------------------------------------------------------


@intrinsic
def _multiply_tile(
    typingctx: Any, tile: Any, x: Any, scales: Any, totals: Any, counts: Any, bits: Any, share: Any, forms: Any
) -> Any:
    """Add the products of a tile and all tokens to their sums.

    Parameters
    ----------
    tile : int64
        Address of the unpacked codes.
    x : (int64, int64, int64, int64, int64)
        Addresses of the first token's codes, scales and sums of values, and bytes to the next token's codes and scales.
    scales : (int64, int64)
        Addresses of the scales, and of minus scales times zero points, float32 (groups, rows) both; the second is not
        read where all zero points are the same, and the sums of values, or of codes (see `sums_are_whole`), carry minus
        that zero point.
    totals : (int64, int64, int64, int64)
        Address of the sums to begin with, float32 (tokens, rows), and bytes from one token to the next, which may be 0;
        the same of where they are written.
    counts : (int64, int64)
        Groups of activations in the tile, and tokens, a multiple of those that meet at a time.
    bits, share, forms : pointers
        Their lengths are the width of a code, the binary logarithm of the group of activations, and 1 where all zero
        points are the same, else 2.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        x = [builder.extract_value(args[1], i) for i in range(5)]
        scales = [builder.extract_value(args[2], i) for i in range(2)]
        totals = [builder.extract_value(args[3], i) for i in range(4)]
        groups, tokens = (builder.extract_value(args[4], i) for i in range(2))
        bits, share, forms = (length(signature.args[i]) for i in (5, 6, 7))
        kernel = _TileKernel(emitter, (bits, 2**share, forms == 1), args[0], scales)

        def body(token: Any, values: list[Any]) -> list[Any]:
            kernel.emit_tokens(token, x, totals, groups)
            return values

        emitter.loop(tokens, tile_shape(emitter.target)[1], [], body)
        return context.get_dummy_value()

    return types.void(tile, x, scales, totals, counts, bits, share, forms), emit


class _TileKernel:
    """Emits the products of a tile with a few tokens."""

    def __init__(self, emitter: Emitter, variant: tuple[int, int, bool], tile: Any, scales: list[Any]) -> None:
        self.emitter = emitter
        bits, group, self.symmetric = variant
        self.whole = sums_are_whole(bits, symmetric=self.symmetric)
        self.steps = group * emitter.target.operand(bits) // 4
        self.unrolled = _STEPS.get(emitter.target.name, 2)
        self.dot = tile_accumulator(emitter, bits)
        self.vectors, self.tokens = tile_shape(emitter.target)
        self.tile = tile
        self.scales = scales
        self.places = [(t, v) for t in range(self.tokens) for v in range(self.vectors)]

    def emit_tokens(self, token: Any, x: list[Any], totals: list[Any], groups: Any) -> None:
        """Emit the loop over groups for the tokens from number `token` on."""
        emitter, width = self.emitter, self.emitter.target.width
        number = [emitter.add(token, t) for t in range(self.tokens)]
        codes = [emitter.add(x[0], emitter.mul(n, x[3])) for n in number]
        factors = [[emitter.add(base, emitter.mul(n, x[4])) for base in x[1:3]] for n in number]
        before, after = (
            [emitter.add(totals[i], emitter.mul(n, totals[i + 1])) for n in number for _ in range(self.vectors)]
            for i in (0, 2)
        )
        offsets = [v * width for _, v in self.places]
        kind = ir.VectorType(F32, emitter.target.lanes)

        def load_sums(addresses: list[Any]) -> list[Any]:
            return [emitter.load(address, kind, offset) for address, offset in zip(addresses, offsets, strict=True)]

        def store_sums(values: list[Any]) -> None:
            for address, offset, value in zip(after, offsets, values, strict=True):
                emitter.store(value, address, offset)

        # Sums stay in registers from group to group where there are enough for them beside those of a group.
        held = emitter.target.registers >= 2 * len(self.places) + self.vectors + 2

        def body(group: Any, values: list[Any]) -> list[Any]:
            at = emitter.mul(group, self.vectors * width)
            # Loaded before anything is stored: LLVM cannot know that a store changes none of them.
            scales = [emitter.load(emitter.add(self.scales[0], at), kind, v * width) for v in range(self.vectors)]
            addresses = [[emitter.add(base, emitter.mul(group, 4)) for base in own] for own in factors]
            factor = [emitter.splat(emitter.load(own[0], F32)) for own in addresses]
            taken = [emitter.splat(emitter.load(own[1], I32 if self.whole else F32)) for own in addresses]
            found = self._dot(group, codes, [taken[t] for t, _ in self.places] if self.whole else None)
            sums = values or load_sums(after)
            results = []
            for (t, v), total, added in zip(self.places, found, sums, strict=True):
                if self.whole:
                    product = emitter.builder.fmul(scales[v], factor[t])
                    results.append(emitter.fma(emitter.to_float(total), product, added))
                elif self.symmetric:
                    value = emitter.fma(emitter.to_float(total), factor[t], taken[t])
                    results.append(emitter.fma(value, scales[v], added))
                else:
                    value = emitter.builder.fmul(emitter.to_float(total), factor[t])
                    zero = emitter.load(emitter.add(self.scales[1], at), kind, v * width)
                    results.append(emitter.fma(value, scales[v], emitter.fma(zero, taken[t], added)))
            if values:
                return results
            store_sums(results)
            return []

        if held:
            store_sums(emitter.loop(groups, 1, load_sums(before), body))
        else:
            store_sums(load_sums(before))
            emitter.loop(groups, 1, [], body)

    def _dot(self, group: Any, codes: list[Any], start: list[Any] | None) -> list[Any]:
        """Sums of a group's products, int32, for each token and vector of rows; `start` is what they begin with."""
        emitter = self.emitter
        first = emitter.mul(group, self.steps)
        burst = min(self.dot.burst, self.steps)
        if burst == self.steps and self.dot.kind == ir.VectorType(I32, emitter.target.lanes):
            return self._burst(first, codes, burst, start)
        if self.steps <= _BURSTS * burst:
            bursts = [self._burst(emitter.add(first, step), codes, burst) for step in range(0, self.steps, burst)]
            parts = bursts if start is None else [*bursts, start]
            return [functools.reduce(emitter.builder.add, values) for values in zip(*parts, strict=True)]
        zero = ir.Constant(ir.VectorType(I32, emitter.target.lanes), None)
        unrolled = max(burst, self.unrolled)

        def body(start: Any, totals: list[Any]) -> list[Any]:
            for step in range(0, unrolled, burst):
                found = self._burst(emitter.add(emitter.add(first, start), step), codes, burst)
                totals = [emitter.builder.add(total, value) for total, value in zip(totals, found, strict=True)]
            return totals

        return emitter.loop(emitter.opaque(self.steps), unrolled, start or [zero] * len(self.places), body)

    def _burst(self, first: Any, codes: list[Any], steps: int, start: list[Any] | None = None) -> list[Any]:
        emitter = self.emitter
        unrolled = min(steps, self.unrolled)

        def body(step: Any, running: list[Any]) -> list[Any]:
            return self._run(emitter.add(first, step), codes, unrolled, running)

        running = start or [self.dot.zero()] * len(self.places)
        if unrolled == steps:
            running = self._run(first, codes, steps, running)
        else:
            running = emitter.loop(emitter.opaque(steps), unrolled, running, body)
        return [self.dot.settle(value) for value in running]

    def _run(self, first: Any, codes: list[Any], steps: int, running: list[Any]) -> list[Any]:
        emitter, width, kind = self.emitter, self.emitter.target.width, self.dot.operand
        tile = emitter.add(self.tile, emitter.mul(first, self.vectors * width))
        x_at = [emitter.add(base, emitter.mul(first, 4)) for base in codes]
        for step in range(steps):
            weights = [emitter.load(tile, kind, (step * self.vectors + v) * width) for v in range(self.vectors)]
            four = [emitter.splat(emitter.load(at, I32, 4 * step)) for at in x_at]
            running = [
                self.dot.add(value, weights[v], emitter.builder.bitcast(four[t], kind))
                for (t, v), value in zip(self.places, running, strict=True)
            ]
        return running


# --- the worker -------------------------------------------------------------------------------------------------


@intrinsic
def _constants(typingctx: Any, bits: Any) -> Any:
    """Return, as int64: rows of a tile, tokens at a time, codes and bytes of a chunk, bytes of an operand."""
    n_bits = length(bits)
    goal, width = target(), target().width
    chunk = chunk_codes(n_bits, width), chunk_bytes(n_bits, width)
    return constants((tile_rows(goal), tile_shape(goal)[1], *chunk, goal.operand(n_bits)), bits)


@jit
def _load_scales(p: Any, job: int, rows: tuple[int, int, int], scratch: int) -> tuple[int, int]:
    """Widen the scales of `rows`, (first, how many, those of a tile); return where they and the zero points are."""
    first, count, n_rows = rows
    size = n_rows * p[STRIDE]
    scales, zeros, line = floats(scratch), floats(scratch + size), floats(scratch + 2 * size)
    form = floats(p[ZERO_FORM])
    for r in range(n_rows):
        row = first + min(r, count - 1)
        scale = p[job + SCALE] + row * p[SCALE_BYTES], p[KIND], p[GROUPS], p[REPEAT]
        widen_scales(scale, scratch + p[SPARE], scratch + 2 * size)
        for group in range(p[GROUPS]):
            scales[group * n_rows + r] = line[group]
        if p[job + ZERO_STEP]:
            stored = octets(p[job + ZERO] + row * p[job + ZERO_ROW])
            for group in range(p[GROUPS]):
                point = np.float32(stored[group // p[REPEAT]]) * form[0] - form[1]
                zeros[group * n_rows + r] = -(line[group] * point)
    return scratch, scratch + size


@jit
def _fetch(rows: tuple[int, int], count: int, size: int) -> None:
    """Ask for `size` bytes of `count` rows, (address, bytes from one to the next), while others are multiplied."""
    start, step = rows
    for r in range(count):
        for byte in range(0, size, 64):
            prefetch(start + r * step + byte)


@jit
def _multiply_rows(
    p: Any, job: int, rows: tuple[int, int, int, int], scratch: int, variant: tuple[Any, Any, Any]
) -> None:
    """Multiply a tile of `rows`, (first, how many, those of a tile, tiles of weights before), by all tokens."""
    first, count, n_rows, before_this = rows
    _, at_a_time, codes, chunk, size = _constants(variant[0])
    start, step = p[job + PACKED] + first * p[ROW_BYTES], p[ROW_BYTES]
    if count < n_rows or first + n_rows > p[job + SAFE_ROWS]:
        for r in range(count):
            copy_bytes(scratch + p[COPIES] + r * p[COPY_BYTES], start + r * step, p[ROW_BYTES])
        start, step = scratch + p[COPIES], p[COPY_BYTES]
    scales, zeros = _load_scales(p, job, (first, count, n_rows), scratch)
    tokens = (p[TOKENS] + at_a_time - 1) // at_a_time * at_a_time
    # Tokens that the microkernel adds to make up its number have no place among the results, nor have rows.
    whole = p[TOKENS] // at_a_time * at_a_time if count == n_rows else 0
    late = max(whole - _LATE // at_a_time * at_a_time, 0)
    line, totals, size_of = scratch + p[TOTALS], scratch + p[TOTALS] + 4 * n_rows, 4 * n_rows
    clear_bytes(line, size_of)
    tile, out = scratch + p[TILE], p[job + OUT] + 4 * first
    for column in range(0, p[PADDED], BLOCK):
        chunks = min(BLOCK, p[PADDED] - column) // codes
        group = column // p[GROUP]
        groups = min(BLOCK // p[GROUP], p[GROUPS] - group)
        unpack_tile((start + column // codes * chunk, step), chunks, tile, variant[0])
        own = scales + 4 * n_rows * group, zeros + 4 * n_rows * group
        last = column + BLOCK >= p[PADDED]
        for token, end in ((0, late), (late, whole), (whole, tokens)):
            # The next columns are asked for so late that the activations of other tokens do not drive them out again.
            if token == late and end == whole > late:
                # Who takes the next tile is not certain, but likely this thread.
                following = (longs(p[COUNTER])[0] - before_this) * n_rows
                if not last:
                    _fetch((start + (column + BLOCK) // codes * chunk, step), count, BLOCK // codes * chunk)
                elif following < p[job + ROWS]:
                    begin = p[job + PACKED] + following * p[ROW_BYTES]
                    _fetch((begin, p[ROW_BYTES]), min(n_rows, p[job + ROWS] - following), chunks * chunk)
            at = p[X_SCALES] + token * p[STRIDE] + 4 * group, p[X_SUMS] + token * p[STRIDE] + 4 * group
            x = p[X_CODES] + token * p[X_BYTES] + size * column, at[0], at[1], p[X_BYTES], p[STRIDE]
            sums = totals + size_of * token
            before, before_step = (sums, size_of) if column else (line, 0)
            after, step_after = (sums, size_of)
            if last and end <= whole:
                after, step_after = out + 4 * token * p[job + ROWS], 4 * p[job + ROWS]
            ends = before, before_step, after, step_after
            _multiply_tile(tile, x, own, ends, (groups, end - token), variant[0], variant[1], variant[2])
    for token in range(whole, p[TOKENS]):
        copy_bytes(out + 4 * token * p[job + ROWS], totals + size_of * token, 4 * count)


def prefill_rows(p: Any, number: int, bits: Any, share: Any, forms: Any) -> None:
    """Multiply all tokens by tiles of rows, up to the one to stop at: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.places`.
    number : int
        Of this worker.
    bits, share, forms : pointers
        See `_multiply_tile`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    n_rows = _constants(bits)[0]
    taken, before = next_number(p[COUNTER]), 0
    for weight in range(p[WEIGHTS]):
        job = JOBS + weight * JOB_SIZE
        n_tiles = (p[job + ROWS] + n_rows - 1) // n_rows
        last = min(before + n_tiles, p[STOP])
        while taken < last:
            first = (taken - before) * n_rows
            rows = first, min(n_rows, p[job + ROWS] - first), n_rows, before
            _multiply_rows(p, job, rows, scratch, (bits, share, forms))
            taken = next_number(p[COUNTER])
        before += n_tiles
