"""Depthwise convolutions: each filter meets one channel, as planes of int16 that have lost their zero point."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types

from llmq_kernels.convolution_places import DOWN, FILTERS, GROUP_BYTES, LINE, OFFSETS, OPERANDS, OUT_WIDTH, PIXELS
from llmq_kernels.integer_places import (
    COUNTER,
    FORM_BYTES,
    OUT,
    PADDED,
    ROW_FORMS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_SCALES,
)
from llmq_kernels.memory import copy_bytes, floats, next_number
from llmq_kernels.simd import F32, I16, I32, I64, Emitter, intrinsic, target
from llmq_kernels.tile_sums import FLOATS
from llmq_kernels.workers import length

__all__ = ["PIXELS_AT_A_TIME", "convolve_depthwise"]

PIXELS_AT_A_TIME: Final = 16

_HALF: Final = PIXELS_AT_A_TIME // 2


@intrinsic
def _convolve_pixels(typingctx: Any, x: Any, taps: Any, form: Any, scale: Any, out: Any, result: Any) -> Any:
    """Convolve neighbouring pixels of a row of outputs.

    Parameters
    ----------
    x : int64
        Address of int16, what the first tap of the first pixel meets.
    taps : (int64, int64, int64)
        Addresses of int64 (taps,), bytes from `x` on, and of int16 (taps,), the filter; and how many there are, an even
        number.
    form : (int64, int64)
        Address of the filter's numbers, and bytes from one kind of number to the next (see `RowForms`).
    scale : float32
        Of the inputs.
    out : int64
        Address of `PIXELS_AT_A_TIME` results.
    result : pointer
        Its length is `INTEGERS` or `FLOATS`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        offsets, filters, count = (builder.extract_value(args[1], i) for i in range(3))
        at, step = (builder.extract_value(args[2], i) for i in range(2))
        dot = _Words(emitter) if "avx" in emitter.target.name else _Numbers(emitter)

        def body(tap: Any, totals: list[Any]) -> list[Any]:
            place = emitter.add(offsets, emitter.mul(tap, 8))
            parts = [emitter.add(args[0], emitter.load(place, I64, 8 * i)) for i in (0, 1)]
            pair = emitter.load(emitter.add(filters, emitter.mul(tap, 2)), ir.VectorType(I16, 2))
            return dot.add(totals, parts, pair)

        totals = dot.in_order(emitter.loop(count, 2, dot.zeros(), body))
        own = [emitter.add(at, emitter.mul(step, kind)) for kind in range(2, 5)]
        base = emitter.splat(emitter.load(own[0], I32), _HALF)
        scaling = emitter.splat(builder.fmul(args[3], emitter.load(own[1], F32)), _HALF)
        after = emitter.splat(emitter.load(own[2], F32), _HALF)
        for i, total in enumerate(totals):
            value = builder.add(total, base)
            if length(signature.args[5]) == FLOATS:
                value = builder.fadd(builder.fmul(emitter.to_float(value), scaling), after)
            emitter.store(value, args[4], 4 * _HALF * i)
        return context.get_dummy_value()

    return types.void(x, taps, form, scale, out, result), emit


class _Numbers:
    """Products of two taps as int32, one by one, for any instruction set."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.kind = ir.VectorType(I32, _HALF)

    def zeros(self) -> list[Any]:
        """Sums of nothing."""
        return [ir.Constant(self.kind, None)] * 2

    def add(self, totals: list[Any], parts: list[Any], pair: Any) -> list[Any]:
        """Add the products of a pair of taps, <2 x i16>, and the inputs at two addresses."""
        emitter, builder = self.emitter, self.emitter.builder
        for i, part in enumerate(parts):
            tap = builder.sext(builder.extract_element(pair, ir.Constant(I32, i)), I32)
            loads = [emitter.load(part, ir.VectorType(I16, _HALF), 2 * _HALF * half) for half in (0, 1)]
            products = [builder.mul(builder.sext(load, self.kind), emitter.splat(tap, _HALF)) for load in loads]
            totals = [builder.add(total, product) for total, product in zip(totals, products, strict=True)]
        return totals

    def in_order(self, totals: list[Any]) -> list[Any]:
        """Sums in the order of pixels."""
        return totals


class _Words(_Numbers):
    """`pmaddwd` of AVX2: inputs of two taps interleaved within halves of vectors, put in order at the end."""

    def add(self, totals: list[Any], parts: list[Any], pair: Any) -> list[Any]:
        """Add the products of a pair of taps, <2 x i16>, and the inputs at two addresses."""
        emitter, builder = self.emitter, self.emitter.builder
        words = ir.VectorType(I16, PIXELS_AT_A_TIME)
        first, second = (emitter.load(part, words) for part in parts)
        taps = builder.bitcast(emitter.splat(builder.bitcast(pair, I32), _HALF), words)
        results = []
        for half, total in enumerate(totals):
            lanes = [lane + 4 * half + i for lane in (0, _HALF) for i in range(4)]
            order = [n for lane in lanes for n in (lane, PIXELS_AT_A_TIME + lane)]
            mixed = emitter.shuffle(first, second, order)
            results.append(builder.add(total, emitter.call("llvm.x86.avx2.pmadd.wd", self.kind, mixed, taps)))
        return results

    def in_order(self, totals: list[Any]) -> list[Any]:
        """Sums in the order of pixels."""
        orders = [[first + i for first in (0, _HALF) for i in range(start, start + 4)] for start in (0, 4)]
        return [self.emitter.shuffle(totals[0], totals[1], order) for order in orders]


def convolve_depthwise(p: Any, number: int, result: Any) -> None:
    """Convolve planes with filters, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.convolution_places`.
    number : int
        Of this worker.
    result : pointer
        See `_convolve_pixels`.
    """
    line = p[SCRATCH] + number * p[SCRATCH_BYTES] + p[LINE]
    taken = next_number(p[COUNTER])
    while taken < p[TOKENS] * p[ROWS]:
        image, row = divmod(taken, p[ROWS])
        plane = p[X_CODES] + image * p[X_BYTES] + row // p[FILTERS] * p[GROUP_BYTES]
        taps = p[OFFSETS], p[OPERANDS] + 2 * row * p[PADDED], p[PADDED]
        form, scale = (p[ROW_FORMS] + 4 * row, p[FORM_BYTES]), floats(p[X_SCALES])[image]
        out = p[OUT] + 4 * taken * p[PIXELS]
        for y in range(p[PIXELS] // p[OUT_WIDTH]):
            for column in range(0, p[OUT_WIDTH], PIXELS_AT_A_TIME):
                x, pixel = plane + 2 * (y * p[DOWN] + column), y * p[OUT_WIDTH] + column
                # What goes beyond a row is written anew by the next ones, but nothing may go beyond the last.
                if pixel + PIXELS_AT_A_TIME <= p[PIXELS]:
                    _convolve_pixels(x, taps, form, scale, out + 4 * pixel, result)
                else:
                    _convolve_pixels(x, taps, form, scale, line, result)
                    copy_bytes(out + 4 * pixel, line, 4 * min(PIXELS_AT_A_TIME, p[OUT_WIDTH] - column))
        taken = next_number(p[COUNTER])
