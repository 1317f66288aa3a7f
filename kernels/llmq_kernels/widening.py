"""Bits of floats to float32, as explicit vectors."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.elementwise import Elements, data_of, emit_loops
from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.simd import intrinsic

__all__ = ["widen_run", "widen_run_reference"]

_FLOAT16: Final = SCALE_KINDS["float16"]
_F32: Final = ir.FloatType()
_I32: Final = ir.IntType(32)


def widen_run_reference(bits: np.ndarray, kind: int) -> np.ndarray:
    """Specify `widen_run` of one run in plain NumPy: float32 (n,).

    Examples
    --------
    >>> widen_run_reference(np.array([0x3C00, 0x8001, 0x7C00], np.uint16), SCALE_KINDS["float16"]).tolist()
    [1.0, -5.960464477539063e-08, inf]
    >>> widen_run_reference(np.array([0x3F80, 0xC000], np.uint16), SCALE_KINDS["bfloat16"]).tolist()
    [1.0, -2.0]
    """
    if kind == _FLOAT16:
        return bits.view(np.float16).astype(np.float32)
    return (bits if bits.dtype == np.uint32 else bits.astype(np.uint32) << 16).view(np.float32)


def _half(e: Elements, bits: Any) -> Any:
    """float32 of float16 in 32-bit words: `floats.half_to_float`, all three cases computed and one chosen."""
    b, words = e.builder, bits.type
    size = b.and_(bits, e.constant(words, 0x7FFF))
    sign = b.shl(b.and_(bits, e.constant(words, 0x8000)), e.constant(words, 16))
    shifted = b.shl(size, e.constant(words, 13))
    normal = b.add(shifted, e.constant(words, 0x38000000))
    quiet = b.icmp_unsigned(">", size, e.constant(words, 0x7C00))
    special = b.or_(shifted, b.select(quiet, e.constant(words, 0x7FC00000), e.constant(words, 0x7F800000)))
    steps = b.fmul(b.sitofp(size, e.kind(_F32)), e.constant(e.kind(_F32), 2.0**-24))
    wide = b.select(b.icmp_unsigned(">=", size, e.constant(words, 0x0400)), normal, b.bitcast(steps, words))
    wide = b.select(b.icmp_unsigned(">=", size, e.constant(words, 0x7C00)), special, wide)
    return b.bitcast(b.or_(wide, sign), e.kind(_F32))


def _bfloat(e: Elements, bits: Any) -> Any:
    """float32 of bfloat16 in 32-bit words."""
    return e.builder.bitcast(e.builder.shl(bits, e.constant(bits.type, 16)), e.kind(_F32))


@intrinsic
def widen_run(typing: Any, bits: Any, kind: Any, place: Any, x: Any) -> Any:
    """Convert some columns of one row to float32, exactly but for NaN.

    Parameters
    ----------
    bits : uint16 or uint32 (rows, columns)
        From `source_bits`.
    kind : int
        A value of `SCALE_KINDS`; of uint32 float32.
    place : (row, start, count)
        Columns `start` to `start + count` of `row`.
    x : float32 (at least count,)
        Written from its beginning.
    """
    scalar = ir.IntType(bits.dtype.bitwidth)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, (_, columns) = data_of(context, builder, signature.args[0], args[0])
        written, _ = data_of(context, builder, signature.args[3], args[3])
        row, start, count = (builder.extract_value(args[2], k) for k in range(3))
        first = builder.add(builder.mul(row, columns), start)

        def widen_all(convert: Any) -> None:
            def body(e: Elements, index: Any) -> None:
                loaded = e.load(data, builder.add(first, index), scalar)
                loaded = loaded if scalar == _I32 else builder.zext(loaded, e.kind(_I32))
                e.store(convert(e, loaded), written, index, _F32)

            emit_loops(builder, count, body)

        if scalar == _I32:
            widen_all(lambda e, loaded: builder.bitcast(loaded, e.kind(_F32)))
            return context.get_dummy_value()
        with builder.if_else(builder.icmp_signed("==", args[1], args[1].type(_FLOAT16))) as (half, bfloat):
            with half:
                widen_all(_half)
            with bfloat:
                widen_all(_bfloat)
        return context.get_dummy_value()

    return types.void(bits, types.int64, types.UniTuple(types.int64, 3), x), emit
