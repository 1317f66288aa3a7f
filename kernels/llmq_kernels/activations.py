"""Activations to int8, one scale for each group: `x` is about `scale * code`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.chunks import ACTIVATION_ORDERS
from llmq_kernels.doors import matrix_of
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit
from llmq_kernels.memory import floats, next_number, octets, words
from llmq_kernels.places import (
    COLUMNS,
    GROUP,
    PADDED,
    SCRATCH,
    SCRATCH_BYTES,
    SPARE,
    STRIDE,
    TOKENS,
    X_BYTES,
    X_CODES,
    X_COUNTER,
    X_SCALES,
    X_SUMS,
    ZERO_FORM,
    X,
)
from llmq_kernels.simd import F32, I8, I16, I32, Emitter, intrinsic, target
from llmq_kernels.workers import length

__all__ = ["activation_group", "activations_reference", "arrange", "encode_rows", "quantize_activations"]


def activations_reference(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Specify `quantize_activations` in plain NumPy, for finite `x`.

    Examples
    --------
    >>> codes, scale, sums = activations_reference(np.array([[127.0, -1.5, 0.5, 0.0]], np.float32), 2)
    >>> codes.tolist(), sums.tolist()
    ([[127, -2, 127, 0]], [[125, 127]])
    """
    groups = x.reshape(x.shape[0], x.shape[1] // group_size, group_size)
    scale = np.maximum(np.abs(groups).max(axis=2) / np.float32(127), np.float32(2.0**-126))
    codes = np.rint(groups / scale[:, :, None]).astype(np.int8)
    return codes.reshape(x.shape), scale, codes.sum(axis=2, dtype=np.int32)


@functools.cache
def activation_group(group_size: int) -> int:
    """Return how many columns share a scale of the activations, for a weight whose groups have `group_size` columns.

    A power of two where microkernels can do with one, of at least 16 columns: the largest that divides the weight's
    group, up to 256. Of other groups up to 256 columns the whole group, of larger ones the largest divisor that is at
    most 256 and at least 32; a group without one is taken whole, as long as 32-bit sums hold its products.

    Examples
    --------
    >>> [activation_group(n) for n in (64, 4096, 96, 24, 1000, 1018)]
    [64, 256, 32, 24, 250, 1018]
    """
    power = group_size & -group_size
    if power >= 16:
        return min(power, 256)
    if group_size <= 256:
        return group_size
    moderate = (n for n in range(256, 31, -1) if group_size % n == 0)
    return next(moderate, None) or max(n for n in range(1, 65537) if group_size % n == 0)


@jit
def _largest(x: np.ndarray) -> np.float32:
    """Find the largest magnitude in float32 (n,), comparing bits as integers: NaN beats everything."""
    most = np.uint32(0)
    for value in x:
        most = max(most, np.uint32(bits_of(value) & np.uint32(0x7FFFFFFF)))
    return float_of(most)


@jit
def _encode(x: np.ndarray, scale: np.float32, codes: np.ndarray) -> np.int32:
    """Round float32 (n,) to int8 (n,); return the sum of the codes."""
    total = np.int32(0)
    for i in range(x.size):
        code = np.int32(min(max(np.rint(x[i] / scale), np.float32(-127.0)), np.float32(127.0)))
        codes[i] = np.int8(code)
        total = np.int32(total + code)
    return total


@intrinsic
def _encode_group(typingctx: Any, x: Any, count: Any, codes: Any) -> Any:
    """Quantize float32 at address `x` to int8 at address `codes`; return scale and sum of the codes.

    `count` is a multiple of 8. The same as `_largest` and `_encode`, in vectors.
    """
    signature = types.Tuple((types.float32, types.int32))(x, count, codes)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        scale, total = _emit_group(emitter, *args)
        return context.make_tuple(builder, signature.return_type, (scale, total))

    return signature, emit


def _emit_group(emitter: Emitter, x: Any, count: Any, codes: Any) -> tuple[Any, Any]:
    builder = emitter.builder
    floats, words, one = ir.VectorType(F32, 8), ir.VectorType(I32, 8), ir.VectorType(I8, 8)

    def all_of(kind: Any, value: Any) -> Any:
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * 8)

    def largest(i: Any, values: list[Any]) -> list[Any]:
        bits = emitter.load(emitter.add(x, emitter.mul(i, 4)), words)
        size = builder.and_(bits, all_of(words, 0x7FFFFFFF))
        return [emitter.call("llvm.umax.v8i32", words, values[0], size)]

    most = emitter.loop(count, 8, [ir.Constant(words, None)], largest)[0]
    most = emitter.call("llvm.vector.reduce.umax.v8i32", I32, most)
    scale = builder.fdiv(builder.bitcast(most, F32), ir.Constant(F32, 127.0))
    least = ir.Constant(F32, 2.0**-126)
    scale = builder.select(builder.fcmp_ordered("<", scale, least), least, scale)
    divisor = emitter.splat(scale, 8)

    def encode(i: Any, values: list[Any]) -> list[Any]:
        ratio = builder.fdiv(emitter.load(emitter.add(x, emitter.mul(i, 4)), floats), divisor)
        code = emitter.call("llvm.rint.v8f32", floats, ratio)
        # Comparisons with NaN are false, so that NaN becomes a number that can be converted.
        low, high = all_of(floats, -127.0), all_of(floats, 127.0)
        code = builder.select(builder.fcmp_ordered(">", code, low), code, low)
        code = builder.select(builder.fcmp_ordered("<", code, high), code, high)
        whole = builder.fptosi(code, words)
        emitter.store(builder.trunc(whole, one), emitter.add(codes, i))
        return [builder.add(values[0], whole)]

    total = emitter.loop(count, 8, [ir.Constant(words, None)], encode)[0]
    return scale, emitter.call("llvm.vector.reduce.add.v8i32", I32, total)


@intrinsic
def arrange(typingctx: Any, line: Any, count: Any, codes: Any, planes: Any, run: Any, size: Any) -> Any:
    """Put int8 codes at address `line` into the order of planes, at address `codes`.

    Of each `planes * run` codes, ``codes[f * run + j] = line[j * planes + f]``: the activations that meet byte `j` of
    plane `f` (see `llmq_kernels.planes`); some numbers of planes have orders of their own (see `llmq_kernels.chunks`).
    `count` is a multiple of the codes of a chunk; `planes` and `run` count by their lengths, the run in units of 4
    bytes, and so does `size`, the bytes of a result: of two, each four codes change places as those of `split_words`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        n_planes, n_run, n_size = length(signature.args[3]), 4 * length(signature.args[4]), length(signature.args[5])
        plain = [j * n_planes + f for f in range(n_planes) for j in range(n_run)]
        order = ACTIVATION_ORDERS.get(n_planes, plain)
        chunk = len(order) if order is plain else max(order)
        if n_size == 2:
            order = [order[i & ~3 | (i & 1) << 1 | (i & 2) >> 1] for i in range(chunk)]

        def body(i: Any, values: list[Any]) -> list[Any]:
            kind = ir.VectorType(I8, chunk)
            codes, zeros = emitter.load(emitter.add(args[0], i), kind), ir.Constant(kind, None)
            result = emitter.shuffle(codes, zeros, order)
            if n_size == 2:
                result = builder.sext(result, ir.VectorType(I16, chunk))
            done = builder.udiv(i, emitter.number(chunk))
            emitter.store(result, emitter.add(args[2], emitter.mul(done, n_size * len(order))))
            return values

        emitter.loop(args[1], chunk, [], body)
        return context.get_dummy_value()

    return types.void(line, count, codes, planes, run, size), emit


def encode_rows(p: Any, number: int, planes: Any, run: Any, size: Any) -> None:
    """Quantize tokens for the microkernels, as long as there are any: a worker (see `llmq_kernels.workers`).

    Writes codes, int8 or int16 (tokens, padded), in plane order, zero beyond the columns; scales, float32 (tokens,
    stride); and, in the same places, sums of the values that the codes of a group stand for, or int32 of the codes
    themselves (see `ZERO_FORM`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.places`.
    number : int
        Of this worker.
    planes, run, size : pointers
        See `arrange`.
    """
    line = p[SCRATCH] + number * p[SCRATCH_BYTES] + p[SPARE]
    for column in range(p[COLUMNS], p[PADDED]):
        octets(line)[column] = np.uint8(0)
    factor, whole = floats(p[ZERO_FORM])[2], floats(p[ZERO_FORM])[3] != np.float32(0.0)
    token = next_number(p[X_COUNTER])
    while token < p[TOKENS]:
        x = p[X] + 4 * token * p[COLUMNS]
        scales, sums = floats(p[X_SCALES] + token * p[STRIDE]), floats(p[X_SUMS] + token * p[STRIDE])
        for group in range(p[COLUMNS] // p[GROUP]):
            start = group * p[GROUP]
            scale, total = _encode_group(x + 4 * start, p[GROUP], line + start)
            scales[group] = scale
            if whole:
                words(p[X_SUMS] + token * p[STRIDE])[group] = np.int32(total * np.int32(factor))
            else:
                sums[group] = scale * np.float32(total) * factor
        arrange(line, p[PADDED], p[X_CODES] + token * p[X_BYTES], planes, run, size)
        token = next_number(p[X_COUNTER])


@jit
def _quantize_activations(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, sums: np.ndarray) -> None:
    """Quantize all groups of float32 (tokens, columns); the shapes of the results tell the group size."""
    tokens, n_groups = scale.shape
    group_size = x.shape[1] // max(n_groups, 1)
    for token in range(tokens):
        for group in range(n_groups):
            start = group * group_size
            part = x[token, start : start + group_size]
            s = _largest(part) / np.float32(127.0)
            s = np.float32(2.0**-126) if s < np.float32(2.0**-126) else s
            scale[token, group] = s
            sums[token, group] = _encode(part, s, codes[token, start : start + group_size])


def quantize_activations(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize activations to int8 with one scale a group, ``scale = max|x| / 127``, half to even.

    Each value is off by at most `scale / 2`, so that one output of ``compute="int8"`` differs from exact activations
    by at most ``sum over groups of scale / 2 * sum|w|``, and is exact wherever all values of a group are multiples
    of its scale. Groups of zeros get the scale 2**-126. A group with NaN or infinity gets such a scale too, and
    products with it are NaN or infinite.

    Parameters
    ----------
    x : float32 (tokens, columns)
    group_size : int
        Divides `columns`; at most 65,536, so that 32-bit sums of products hold.

    Returns
    -------
    codes : int8 (tokens, columns)
        -127 to 127.
    scale : float32 (tokens, n_groups)
    sums : int32 (tokens, n_groups)
        Sums of the codes of each group.

    Raises
    ------
    TypeError, ValueError
        Not a float32 matrix, or a group size that does not divide it or is too large.
    """
    x = matrix_of("x", x, np.float32)
    tokens, columns = x.shape
    if not 1 <= group_size <= 65536 or columns % group_size:
        raise ValueError(f"group size {group_size} does not divide {columns} columns, or is above 65536")
    shape = (tokens, columns // group_size)
    codes, scale, sums = np.empty(x.shape, np.int8), np.empty(shape, np.float32), np.empty(shape, np.int32)
    _quantize_activations(x, codes, scale, sums)
    return codes, scale, sums
