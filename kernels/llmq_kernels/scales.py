"""Scales of packed rows, in vectors, widened to float32.

With ``w = s * (code - z)`` and ``x = t * a`` in each group, a product of rows is
``sum over groups of s * t * (sum of code * a) - s * z * (sum of t * a)``: what `llmq_kernels.decode` and
`llmq_kernels.prefill` make of the scales `s`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.jit import jit
from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.memory import clear_bytes, expand
from llmq_kernels.simd import F32, I8, I16, I32, Emitter, constant, intrinsic, target

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RowScales", "load_floats", "widen_scales"]

_FLOAT32 = SCALE_KINDS["float32"]
_EIGHT = 8
"""Scales that `widen_scales` takes at a time."""


@jit
def widen_scales(scale: tuple[int, int, int, int], spare: int, out: int) -> None:
    """Write the scales of a row as float32.

    Parameters
    ----------
    scale : (int, int, int, int)
        Address of the row's scales, a value of `SCALE_KINDS`, groups of activations, how many of them share a scale.
    spare : int
        Address of scratch: 4 bytes a group, groups rounded up to 8.
    out : int
        Address of float32 (groups,), written up to the next multiple of 8.
    """
    start, kind, count, repeat = scale
    size = 4 if kind == _FLOAT32 else 2
    done = count // _EIGHT * _EIGHT if repeat == 1 else 0
    _widen(start, kind, done, out)
    if done < count:
        # A whole vector is read below: the rest of the row, and zeros, are put where that is safe.
        rest = (count - done + _EIGHT - 1) // _EIGHT * _EIGHT
        clear_bytes(spare, 4 * rest)
        expand(spare, start + size * (done // repeat), size, count - done, repeat)
        _widen(spare, kind, rest, out + 4 * done)


@intrinsic
def _widen(typingctx: Any, start: Any, kind: Any, count: Any, out: Any) -> Any:
    """Widen `count` scales, a multiple of 8, from address `start` to address `out`; `kind` is of `SCALE_KINDS`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        start, kind, count, out = args
        for name, number in SCALE_KINDS.items():
            with builder.if_then(builder.icmp_signed("==", kind, emitter.number(number))):

                def body(i: Any, values: list[Any], name: str = name) -> list[Any]:
                    size = 4 if name == "float32" else 2
                    wide = load_floats(emitter, name, emitter.add(start, emitter.mul(i, size)), _EIGHT)
                    emitter.store(wide, emitter.add(out, emitter.mul(i, 4)))
                    return values

                emitter.loop(count, _EIGHT, [], body)
        return context.get_dummy_value()

    return types.void(start, kind, count, out), emit


class RowScales:
    """Emits the scales and zero points of some rows, for as many groups at a time as a vector has lanes.

    Parameters
    ----------
    emitter : Emitter
    kind : value
        int64 of `SCALE_KINDS`.
    zeros : value
        Address of the first row's zero points, of which a whole vector can be read.
    step : value
        int64: bytes from one zero point to the next: 1, or 0 for a vector of them that serves all groups of all rows.
    form : (value, value)
        float32: what a zero point is multiplied by, and what is taken off then.
    """

    def __init__(self, emitter: Emitter, kind: Any, zeros: Any, step: Any, form: tuple[Any, Any]) -> None:
        self.emitter = emitter
        self.kind = kind
        self.step = step
        self.times, self.less = (emitter.splat(value) for value in form)
        self.lanes = emitter.target.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self._shared = self._points(zeros)

    def load(self, rows: Sequence[tuple[Any, Any]], groups: tuple[Any, Any], ahead: Any) -> tuple[list[Any], list[Any]]:
        """Load the scales and zero points of a vector of groups: float32 vectors, one of each for a row.

        Parameters
        ----------
        rows : sequence of (value, value)
            Addresses of each row's scales and zero points; whole vectors can be read.
        groups : (value, value)
            The first one's number, and how many there are from it on: scales of others are zero.
        ahead : value
            int64: scales that lie so many bytes behind are fetched into the caches meanwhile.
        """
        emitter, builder = self.emitter, self.emitter.builder
        group, left = groups
        # Values of one branch or another: LLVM keeps them in registers.
        all_scales, all_zeros = ([cgutils.alloca_once(builder, self.vector) for _ in rows] for _ in range(2))
        words = ir.VectorType(I32, self.lanes)
        numbers = ir.Constant(words, [ir.Constant(I32, lane) for lane in range(self.lanes)])
        inside = builder.icmp_signed("<", numbers, emitter.splat(builder.trunc(left, I32)))
        for name, number in SCALE_KINDS.items():
            with builder.if_then(builder.icmp_signed("==", self.kind, emitter.number(number))):
                at = emitter.mul(group, 4 if name == "float32" else 2)
                for (start, _), place in zip(rows, all_scales, strict=True):
                    emitter.prefetch(emitter.add(emitter.add(start, ahead), at), 0)
                    loaded = load_floats(emitter, name, emitter.add(start, at), self.lanes)
                    builder.store(builder.select(inside, loaded, ir.Constant(self.vector, None)), place)
        same = builder.icmp_signed("==", self.step, emitter.number(0))
        with builder.if_else(same) as (shared, own):
            with shared:
                for place in all_zeros:
                    builder.store(self._shared, place)
            with own:
                for (_, start), place in zip(rows, all_zeros, strict=True):
                    builder.store(self._points(emitter.add(start, group)), place)
        scales, zeros = ([builder.load(p, typ=self.vector) for p in places] for places in (all_scales, all_zeros))
        return scales, zeros

    def _points(self, address: Any) -> Any:
        builder = self.emitter.builder
        stored = builder.uitofp(self.emitter.load(address, ir.VectorType(I8, self.lanes)), self.vector)
        return builder.fsub(builder.fmul(stored, self.times), self.less)


def load_floats(emitter: Emitter, kind: str, address: Any, lanes: int) -> Any:
    """Load a vector of scales, or other numbers of a key of `SCALE_KINDS`, as float32."""
    builder = emitter.builder
    floats, words = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
    if kind == "float32":
        return emitter.load(address, floats)
    bits = emitter.load(address, ir.VectorType(I16, lanes))
    if kind == "float16" and emitter.target.half:
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), floats)
    wide = builder.zext(bits, words)
    if kind == "bfloat16":
        return builder.bitcast(builder.shl(wide, constant(words, 16)), floats)
    return _half_by_integers(emitter, wide)


def _half_by_integers(emitter: Emitter, wide: Any) -> Any:
    """Widen float16 bits as `floats.half_to_float` does, for CPUs without an instruction."""
    builder, words = emitter.builder, wide.type
    floats = ir.VectorType(F32, words.count)
    size = builder.and_(wide, constant(words, 0x7FFF))
    sign = builder.shl(builder.and_(wide, constant(words, 0x8000)), constant(words, 16))
    normal = builder.add(builder.shl(size, constant(words, 13)), constant(words, 0x38000000))
    special = builder.or_(builder.shl(size, constant(words, 13)), constant(words, 0x7F800000))
    steps = builder.fmul(builder.sitofp(size, floats), constant(floats, 2.0**-24))
    small = builder.bitcast(steps, words)
    value = builder.select(builder.icmp_unsigned("<", size, constant(words, 0x0400)), small, normal)
    value = builder.select(builder.icmp_unsigned(">=", size, constant(words, 0x7C00)), special, value)
    return builder.bitcast(builder.or_(value, sign), floats)
