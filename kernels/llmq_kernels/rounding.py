"""Floats to codes, as explicit vectors: the inner loop of all quantizing."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.elementwise import Elements, data_of, emit_loops
from llmq_kernels.simd import intrinsic

__all__ = ["round_codes", "round_codes_reference"]

_F32: Final = ir.FloatType()
_I8: Final = ir.IntType(8)
_I32: Final = ir.IntType(32)

_STEPS: Final = 1536.0
"""Added to a number of up to 511, and taken off again, it leaves a multiple of 2**-13."""

_WHOLE: Final = 1.5 * 2.0**23
"""Added to a small number, it rounds that to a whole one, half to even, which the low bits then hold."""

_WHOLE_BITS: Final = 0x4B400000


def round_codes_reference(
    x: np.ndarray, scale: np.float32, levels: tuple[float, float, int], inverse: np.float32
) -> np.ndarray:
    """Specify `round_codes` in plain NumPy: uint8 (n,).

    Examples
    --------
    >>> x = np.array([-8.4, -0.5, 0.5, 1.5, 7.4, 9.0], np.float32)
    >>> round_codes_reference(x, np.float32(1), (-8.0, 7.0, 8), np.float32(1)).tolist()
    [0, 8, 8, 10, 15, 15]
    """
    low, high, zero = levels
    with np.errstate(over="ignore"):
        ratio = (x * inverse + np.float32(_STEPS)) - np.float32(_STEPS) if inverse else x / scale
    return np.asarray(np.rint(np.clip(ratio, low, high)) + zero, np.uint8)


def _ratio(e: Elements, x: Any, scale: Any, *, divide: bool) -> Any:
    """``x / scale``; or `x` times `scale`, an inverse, rounded to a multiple of 2**-13."""
    b = e.builder
    if divide:
        return b.fdiv(x, scale)
    steps, fused = e.constant(x.type, _STEPS), ("contract",)
    return b.fsub(b.fadd(b.fmul(x, scale, flags=fused), steps, flags=fused), steps)


def _codes(e: Elements, ratio: Any, low: Any, high: Any, shift: Any) -> Any:
    """Clamp, round and shift."""
    b = e.builder
    ratio = b.select(b.fcmp_ordered(">", ratio, low), ratio, low)
    ratio = b.select(b.fcmp_ordered("<", ratio, high), ratio, high)
    whole = b.bitcast(b.fadd(ratio, e.constant(ratio.type, _WHOLE)), e.kind(_I32))
    return b.trunc(b.add(whole, shift), e.kind(_I8))


@intrinsic
def round_codes(typing: Any, x: Any, place: Any, scale: Any, levels: Any, inverse: Any, codes: Any) -> Any:
    """Round floats to codes: ``clamp(rint(x / scale), low, high) + zero``, half to even.

    Where `inverse` is not zero, `x` is multiplied by it, and the product rounded to a multiple of 2**-13 first. The
    codes are those of the division if `x` and `scale` have no more than 11 significant bits, as float16 and bfloat16
    have, and the inverse of the scale is normal. For write ``x / scale = a * 2**e / b`` with whole `a` and `b` below
    2**11: it is half of an odd number or more than 2**-13 away from each such half, while the product is off by less
    than 2**-14 wherever it is not clamped anyway. So rounding it to multiples of 2**-13 moves it onto a half if the
    quotient is one, and otherwise neither onto nor across one.

    Parameters
    ----------
    x : float32 (n,)
        Finite.
    place : (start, count)
        Which of `x` and `codes`.
    scale : float32
        Not zero; of either sign.
    levels : (low, high, zero)
        float32, float32 and int64: the lowest and highest code, whole numbers counted from `zero`.
    inverse : float32
        ``1 / scale``, or zero to divide.
    codes : uint8 (n,)
        Written.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, written = (data_of(context, builder, signature.args[k], args[k])[0] for k in (0, 5))
        start, count = (builder.extract_value(args[1], k) for k in range(2))
        low, high, zero = (builder.extract_value(args[3], k) for k in range(3))
        shift = builder.sub(builder.trunc(zero, _I32), _I32(_WHOLE_BITS))

        def round_all(number: Any, *, divide: bool) -> None:
            def body(e: Elements, index: Any) -> None:
                at = builder.add(start, index)
                ratio = _ratio(e, e.load(data, at, _F32), e.spread(number), divide=divide)
                e.store(_codes(e, ratio, *(e.spread(value) for value in (low, high, shift))), written, at, _I8)

            emit_loops(builder, count, body)

        with builder.if_else(builder.fcmp_ordered("==", args[4], args[4].type(0.0))) as (divided, multiplied):
            with divided:
                round_all(args[2], divide=True)
            with multiplied:
                round_all(args[4], divide=False)
        return context.get_dummy_value()

    places = types.UniTuple(types.int64, 2)
    numbers = types.Tuple((types.float32, types.float32, types.int64))
    return types.void(x, places, types.float32, numbers, types.float32, codes), emit
