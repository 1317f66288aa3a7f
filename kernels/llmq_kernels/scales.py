"""Scales of packed rows, in vectors: widened, and multiplied by those of the activations.

With ``w = s * (code - z)`` and ``x = t * a`` in each group, a product of rows is
``sum over groups of s * t * (sum of code * a) - s * z * (sum of t * a)``. The sum of integers is the microkernels';
the products `s * t`, and what the zero points take off, are computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import types

from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.memory import clear_bytes, expand
from llmq_kernels.simd import F32, I8, I16, I32, Emitter, intrinsic, target

if TYPE_CHECKING:
    import numpy as np

__all__ = ["multiply_scales"]

_FLOAT32 = SCALE_KINDS["float32"]
_EIGHT = ir.VectorType(F32, 8)


@jit
def multiply_scales(
    scale: tuple[int, int, int, int],
    zero: tuple[int, int],
    zero_form: tuple[np.float32, np.float32],
    x: tuple[int, int],
    spare: int,
    out: int,
) -> np.float32:
    """Multiply the scales of a row by those of a token; return what the zero points take off.

    Parameters
    ----------
    scale : (int, int, int, int)
        Address of the row's scales, a value of `SCALE_KINDS`, groups of activations, how many of them share a scale.
    zero : (int, int)
        Address of the row's zero points, uint8, and bytes from one to the next: 1, or 0 for eight that serve all.
    zero_form : (float32, float32)
        What a zero point is multiplied by, and what is taken off then.
    x : (int, int)
        Addresses of the token's scales and sums of values, float32 (groups,), zero up to the next multiple of 8.
    spare : int
        Address of scratch: 5 bytes a group, groups rounded up to 8.
    out : int
        Address of the products, float32 (groups,), written up to the next multiple of 8.
    """
    start, kind, count, repeat = scale
    size = 4 if kind == _FLOAT32 else 2
    done = count // 8 * 8 if repeat == 1 else 0
    taken: np.float32 = _products((start, kind), zero, zero_form, done, x, out)
    if done == count:
        return taken
    # A whole vector is read below: the rest of the row, and zeros, are put where that is safe.
    rest = (count - done + 7) // 8 * 8
    clear_bytes(spare, 5 * rest)
    expand(spare, start + size * (done // repeat), size, count - done, repeat)
    zeros = zero[0]
    if zero[1]:
        zeros = spare + 4 * rest
        expand(zeros, zero[0] + done // repeat, 1, count - done, repeat)
    own = x[0] + 4 * done, x[1] + 4 * done
    more: np.float32 = _products((spare, kind), (zeros, zero[1]), zero_form, rest, own, out + 4 * done)
    return taken + more


@intrinsic
def _products(typingctx: Any, scale: Any, zero: Any, zero_form: Any, count: Any, x: Any, out: Any) -> Any:
    """Multiply `count` scales, a multiple of 8; arguments are those of `multiply_scales`, `scale` without counts."""
    signature = types.float32(scale, zero, zero_form, count, x, out)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        (at, kind), zero, form, x = ([builder.extract_value(args[i], j) for j in (0, 1)] for i in (0, 1, 2, 4))
        place = builder.alloca(_EIGHT)
        builder.store(ir.Constant(_EIGHT, None), place)
        for name, number in SCALE_KINDS.items():
            with builder.if_then(builder.icmp_signed("==", kind, emitter.number(number))):
                builder.store(_emit_products(emitter, (name, at), zero, form, args[3], (*x, args[5])), place)
        return emitter.sum_lanes(builder.load(place, typ=_EIGHT))

    return signature, emit


def _emit_products(
    emitter: Emitter, scale: tuple[str, Any], zero: list[Any], form: list[Any], count: Any, arrays: tuple[Any, ...]
) -> Any:
    builder = emitter.builder
    x_scale, x_sum, out = arrays
    times, less = (emitter.splat(value, 8) for value in form)
    name, start = scale

    def body(i: Any, sums: list[Any]) -> list[Any]:
        at = emitter.mul(i, 4)
        wide = load_floats(emitter, name, emitter.add(start, at if name == "float32" else emitter.mul(i, 2)))
        factor = builder.fmul(wide, emitter.load(emitter.add(x_scale, at), _EIGHT))
        emitter.store(factor, emitter.add(out, at))
        zeros = emitter.load(emitter.add(zero[0], emitter.mul(i, zero[1])), ir.VectorType(I8, 8))
        zeros = builder.fsub(builder.fmul(builder.uitofp(zeros, _EIGHT), times), less)
        taken = builder.fmul(zeros, emitter.load(emitter.add(x_sum, at), _EIGHT))
        return [emitter.fma(wide, taken, sums[0])]

    return emitter.loop(count, 8, [ir.Constant(_EIGHT, None)], body)[0]


def load_floats(emitter: Emitter, kind: str, address: Any) -> Any:
    """Load 8 scales, or other numbers of a key of `SCALE_KINDS`, as float32."""
    builder = emitter.builder
    if kind == "float32":
        return emitter.load(address, _EIGHT)
    bits = emitter.load(address, ir.VectorType(I16, 8))
    if kind == "float16" and emitter.target.half:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), 8)), _EIGHT)
    wide = builder.zext(bits, ir.VectorType(I32, 8))
    if kind == "bfloat16":
        return builder.bitcast(builder.shl(wide, _words(16)), _EIGHT)
    return _half_by_integers(emitter, wide)


def _half_by_integers(emitter: Emitter, wide: Any) -> Any:
    """Widen float16 bits as `floats.half_to_float` does, for CPUs without an instruction."""
    builder = emitter.builder
    size = builder.and_(wide, _words(0x7FFF))
    sign = builder.shl(builder.and_(wide, _words(0x8000)), _words(16))
    normal = builder.add(builder.shl(size, _words(13)), _words(0x38000000))
    special = builder.or_(builder.shl(size, _words(13)), _words(0x7F800000))
    steps = builder.fmul(builder.sitofp(size, _EIGHT), ir.Constant(_EIGHT, [ir.Constant(F32, 2.0**-24)] * 8))
    small = builder.bitcast(steps, ir.VectorType(I32, 8))
    value = builder.select(builder.icmp_unsigned("<", size, _words(0x0400)), small, normal)
    value = builder.select(builder.icmp_unsigned(">=", size, _words(0x7C00)), special, value)
    return builder.bitcast(builder.or_(value, sign), _EIGHT)


def _words(value: int) -> Any:
    return ir.Constant(ir.VectorType(I32, 8), [ir.Constant(I32, value)] * 8)
