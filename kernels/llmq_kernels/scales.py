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

__all__ = ["multiply_scales", "multiply_whole", "whole_groups"]

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
    done = whole_groups(count, repeat)
    found = multiply_whole(((start,), kind), ((zero[0],), zero[1]), zero_form, done, x, (out,))
    taken: np.float32 = found[0]
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
    found = multiply_whole(((spare,), kind), ((zeros,), zero[1]), zero_form, rest, own, (out + 4 * done,))
    more: np.float32 = found[0]
    return taken + more


@jit
def whole_groups(count: int, repeat: int) -> int:
    """Of `count` groups of activations, those that `multiply_whole` can take from where their scales lie."""
    return count // 8 * 8 if repeat == 1 else 0


@intrinsic
def multiply_whole(typingctx: Any, scale: Any, zero: Any, zero_form: Any, count: Any, x: Any, outs: Any) -> Any:
    """Do as `multiply_scales` for some rows at once, each group having a scale of its own; return what is taken off.

    Parameters
    ----------
    scale : ((int, ...), int)
        Addresses of each row's scales, and a value of `SCALE_KINDS`.
    zero : ((int, ...), int)
        Addresses of each row's zero points, and bytes from one to the next; where 0, all rows have those of the first.
    zero_form, x
        See `multiply_scales`.
    count : int
        Groups of activations, a multiple of 8.
    outs : (int, ...)
        Addresses of the products.
    """
    rows = len(outs)
    signature = types.UniTuple(types.float32, rows)(scale, zero, zero_form, count, x, outs)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        (starts, kind), (zeros, step), form, x = (
            [builder.extract_value(args[i], j) for j in (0, 1)] for i in (0, 1, 2, 4)
        )
        starts, zeros, outs = (
            [builder.extract_value(many, r) for r in range(rows)] for many in (starts, zeros, args[5])
        )
        kernel = _Products(emitter, (*form, *x), args[3], outs)
        sums = [builder.alloca(_EIGHT) for _ in range(rows)]
        for name, number in SCALE_KINDS.items():
            with builder.if_then(builder.icmp_signed("==", kind, emitter.number(number))):
                same = builder.icmp_signed("==", step, emitter.number(0))
                with builder.if_else(same) as branches:
                    for branch, own in zip(branches, (False, True), strict=True):
                        with branch:
                            found = kernel.emit(name, starts, zeros, own)
                            for place, value in zip(sums, found, strict=True):
                                builder.store(value, place)
        results = [emitter.sum_lanes(builder.load(place, typ=_EIGHT)) for place in sums]
        return context.make_tuple(builder, signature.return_type, results)

    return signature, emit


class _Products:
    """Emits the loops of `multiply_whole`: `values` are the form of zero points, and the addresses of `x`."""

    def __init__(self, emitter: Emitter, values: tuple[Any, ...], count: Any, outs: list[Any]) -> None:
        self.emitter = emitter
        self.times, self.less = (emitter.splat(value, 8) for value in values[:2])
        self.x = values[2:]
        self.count = count
        self.outs = outs

    def emit(self, kind: str, starts: list[Any], zeros: list[Any], own: bool) -> list[Any]:
        """Emit the loop for scales of a kind, and zero points of their own or the same eight for all."""
        emitter, builder = self.emitter, self.emitter.builder
        same = self._points(zeros[0])

        def body(i: Any, sums: list[Any]) -> list[Any]:
            at = emitter.mul(i, 4)
            x_scale, x_sum = (emitter.load(emitter.add(base, at), _EIGHT) for base in self.x)
            size = at if kind == "float32" else emitter.mul(i, 2)
            wide = [load_floats(emitter, kind, emitter.add(start, size)) for start in starts]
            points = [self._points(emitter.add(zero, i)) if own else same for zero in zeros]
            taken = [builder.fmul(point, x_sum) for point in points]
            for value, out in zip(wide, self.outs, strict=True):
                emitter.store(builder.fmul(value, x_scale), emitter.add(out, at))
            return [emitter.fma(*terms) for terms in zip(wide, taken, sums, strict=True)]

        return emitter.loop(self.count, 8, [ir.Constant(_EIGHT, None)] * len(starts), body)

    def _points(self, address: Any) -> Any:
        builder = self.emitter.builder
        stored = builder.uitofp(self.emitter.load(address, ir.VectorType(I8, 8)), _EIGHT)
        return builder.fsub(builder.fmul(stored, self.times), self.less)


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
