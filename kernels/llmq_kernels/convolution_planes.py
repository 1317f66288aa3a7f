"""Images to planes of operands, with borders, that tiles are gathered from (see `llmq_kernels.convolution_places`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.convolution_places import CHANNELS, HEIGHT, LEFT, PHASE, PLANE, ROW, STRIDE, TOP, WIDTH
from llmq_kernels.integer_places import (
    HIGHEST,
    LOWEST,
    SCRATCH,
    SCRATCH_BYTES,
    SPARE,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_COUNTER,
    X_POINTS,
    X_SCALES,
    X,
)
from llmq_kernels.integer_rows import encode_line, is_float
from llmq_kernels.jit import jit
from llmq_kernels.memory import clear_bytes, copy_bytes, floats, next_number, shorts, signed_octets, words
from llmq_kernels.simd import I8, I16, Emitter, intrinsic, target
from llmq_kernels.workers import constants, length

__all__ = ["encode_planes"]


@intrinsic
def _size(typingctx: Any, size: Any) -> Any:
    """Return a variant's length, as a constant."""
    return constants((length(size),), size)


@jit
def _spread_bytes(p: Any, line: int, to: int) -> None:
    """Put a row of int8 codes at address `line` into a row of a plane of int8."""
    codes, row, stride = signed_octets(line), signed_octets(to), p[STRIDE]
    if stride == 1:
        copy_bytes(to + p[LEFT], line, p[WIDTH])
        return
    for column in range(p[WIDTH]):
        phase = (column + p[LEFT]) % stride
        row[phase * p[PHASE] + (column + p[LEFT]) // stride] = codes[column]


@intrinsic
def _widen(typingctx: Any, codes: Any, count: Any, point: Any, to: Any) -> Any:
    """Write `count` int8 at address `codes`, less `point`, as int16 at address `to`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter, (codes, count, point, to) = Emitter(builder, target()), args
        lost, longer = builder.trunc(point, I16), count.type(2**62)
        for lanes in (16, 8, 1):
            words = ir.VectorType(I16, lanes)
            splat = emitter.splat(lost, lanes)

            def body(place: Any, values: list[Any], lanes: int = lanes, words: Any = words, splat: Any = splat) -> Any:
                # The last codes once more, where they do not make a whole vector.
                last = builder.sub(count, emitter.number(lanes))
                column = builder.select(builder.icmp_signed("<", place, last), place, last)
                wide = builder.sext(emitter.load(emitter.add(codes, column), ir.VectorType(I8, lanes)), words)
                emitter.store(builder.sub(wide, splat), emitter.add(to, emitter.mul(column, 2)))
                return values

            fits = builder.icmp_signed(">=", count, emitter.number(lanes))
            fits = builder.and_(fits, builder.icmp_signed("<", count, longer))
            emitter.loop(builder.select(fits, count, emitter.number(0)), lanes, [], body)
            longer = emitter.number(lanes)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), emit


@jit
def _spread_words(p: Any, line: int, point: int, to: int) -> None:
    """Put a row of int8 codes at address `line`, less `point`, into a row of a plane of int16."""
    codes, row, stride = signed_octets(line), shorts(to), p[STRIDE]
    if stride == 1:
        _widen(line, p[WIDTH], point, to + 2 * p[LEFT])
        return
    for column in range(p[WIDTH]):
        phase = (column + p[LEFT]) % stride
        row[phase * p[PHASE] + (column + p[LEFT]) // stride] = np.int16(codes[column]) - np.int16(point)


@jit
def _fill(to: int, count: int, point: int, size: int) -> None:
    """Fill a plane with a zero point."""
    if point == 0:
        clear_bytes(to, count * size)
    elif size == 2:
        whole, wide = shorts(to), np.int16(point)
        for i in range(count):
            whole[i] = wide
    else:
        narrow, byte = signed_octets(to), np.int8(point)
        for i in range(count):
            narrow[i] = byte


def encode_planes(p: Any, number: int, size: Any, centred: Any, source: Any) -> None:
    """Bring channels of images into planes, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.convolution_places`.
    number : int
        Of this worker.
    size, centred, source : pointers
        Their lengths are the bytes of an operand, 2 where these are to lose the zero point, else 1, and `INTEGERS` or
        `FLOATS`.
    """
    line = p[SCRATCH] + number * p[SCRATCH_BYTES] + p[SPARE]
    bytes_ = _size(size)[0]
    taken = next_number(p[X_COUNTER])
    while taken < p[TOKENS] * p[CHANNELS]:
        image, channel = divmod(taken, p[CHANNELS])
        point = words(p[X_POINTS])[image]
        form = floats(p[X_SCALES])[image], point, p[LOWEST], p[HIGHEST]
        plane = p[X_CODES] + image * p[X_BYTES] + channel * p[PLANE] * bytes_
        lost = point if _size(centred)[0] == 2 else 0
        _fill(plane, p[PLANE], point - lost, bytes_)
        count = p[HEIGHT] * p[WIDTH]
        codes = line if is_float(source)[0] else p[X] + taken * count
        if is_float(source)[0]:
            encode_line(p[X] + 4 * taken * count, count, form, line)
        for y in range(p[HEIGHT]):
            to = plane + (y + p[TOP]) * p[ROW] * bytes_
            if bytes_ == 2:
                _spread_words(p, codes + y * p[WIDTH], lost, to)
            else:
                _spread_bytes(p, codes + y * p[WIDTH], to)
        taken = next_number(p[X_COUNTER])
