"""`exp` in float32 as plain arithmetic, which LLVM turns into vector code; a call of libm it does not."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit

__all__ = ["exp"]

LOG2_E: Final = np.float32(1.4426950408889634)
# ln 2 in two parts, the first with few bits, so that n * ln 2 is exact enough.
LN2_HIGH: Final = np.float32(0.693359375)
LN2_LOW: Final = np.float32(-2.12194440e-4)
# Adding it leaves the nearest integer in the low bits of the sum.
ROUND: Final = np.float32(12582912.0)
LOWEST: Final = np.float32(-87.0)
HIGHEST: Final = np.float32(88.0)
# Taylor's series; the next term is below 1e-8.
SERIES: Final = tuple(np.float32(1.0 / x) for x in (5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0))


@jit(fastmath={"contract"})
def exp(x: np.float32) -> np.float32:
    """`e**x` within 2 units in the last place.

    `x` is held between -87 and 88, so nothing underflows or overflows: the results at the ends are 1.6e-38 and
    1.7e38. NaN stays NaN.
    """
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = np.float32(x * LOG2_E + ROUND)
    n = np.float32(shifted - ROUND)
    rest = np.float32(np.float32(x - n * LN2_HIGH) - n * LN2_LOW)  # |rest| <= ln(2) / 2
    series = SERIES[0]
    for term in SERIES[1:]:
        series = np.float32(series * rest + term)
    power = float_of(np.uint32(np.uint32(bits_of(shifted) << 23) + np.uint32(0x3F800000)))
    return np.float32(series * power)
