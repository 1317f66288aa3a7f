"""Multiply by weights whose scales, zero points and codes are at all extremes, beside pages that must not be touched.

Prints how many products were right: NaN and infinity come out where they went in, and nowhere else.
"""

from __future__ import annotations

import numpy as np
from guard_pages import fenced, fenced_matrix
from packed_cases import VARIANTS

from llmq_kernels.gather import gather
from llmq_kernels.layout import SCALE_KINDS, PackedMatrix, row_bytes
from llmq_kernels.matmul import matmul
from llmq_kernels.quantize import dequantize, dequantize_reference, scales_reference

BITS = {
    "float16": {"nan": 0x7E00, "-nan": 0xFE01, "inf": 0x7C00, "-inf": 0xFC00, "zero": 0, "-zero": 0x8000, "tiny": 1},
    "bfloat16": {"nan": 0x7FC0, "-nan": 0xFF81, "inf": 0x7F80, "-inf": 0xFF80, "zero": 0, "-zero": 0x8000, "tiny": 1},
    "float32": {
        "nan": 0x7FC00000, "-nan": 0xFF800001, "inf": 0x7F800000, "-inf": 0xFF800000, "zero": 0, "-zero": 0x80000000,
        "tiny": 1, "largest": 0x7F7FFFFF,
    },
}  # fmt: skip
"""Scales that nobody would write on purpose, by what they are."""

ROWS = 5
HURT = 2
"""The row whose scale is hostile."""


def hostile(kind: str, bits: int, group_size: int, pattern: int, symmetric: bool) -> PackedMatrix:
    """Ones and extremes, with one odd scale."""
    columns = 2 * group_size
    rng = np.random.default_rng(pattern % 97)
    packed = rng.choice(np.array([0, 255, 170], np.uint8), (ROWS, row_bytes(columns, bits)))
    one = np.ones((ROWS, 2), np.float32)
    if kind == "float32":
        one[HURT, 1] = np.array([pattern], np.uint32).view(np.float32)[0]
        scale = one.view(np.uint16)
    else:
        scale = np.full((ROWS, 2), 0x3C00 if kind == "float16" else 0x3F80, np.uint16)
        scale[HURT, 1] = pattern
    zero = None if symmetric else rng.choice(np.array([0, 255, 2**bits - 1], np.uint8), (ROWS, 2))
    return PackedMatrix(packed, scale, zero, bits, group_size, columns, SCALE_KINDS[kind])


def check(matrix: PackedMatrix, tokens: int, at_end: bool) -> int:
    """Multiply, look rows up and widen; compare finite rows, and that the hurt one tells what hurts it."""
    x = np.random.default_rng(tokens).standard_normal((tokens, matrix.columns)).astype(np.float32)
    with np.errstate(all="ignore"):
        weight, scales = dequantize_reference(matrix), scales_reference(matrix)
        np.testing.assert_array_equal(dequantize(matrix), weight)
        fence = fenced_matrix(matrix, at_end)
        np.testing.assert_array_equal(gather(fence, np.array([HURT, 0])), weight[[HURT, 0]])
        for compute in ("int8", "float32"):
            out = fenced(np.zeros((tokens, ROWS), np.float32), at_end)
            found = matmul(fenced(x, at_end), fence, compute=compute, out=out)
            sums = np.abs(np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=0.0)).astype(np.float64).sum(axis=1)
            bound = np.abs(x).max() * sums * (0.006 if compute == "int8" else 1e-5)
            exact = x.astype(np.float64) @ weight.T.astype(np.float64)
            for row in range(ROWS):
                if np.abs(scales[row][np.isfinite(scales[row])]).max() > 1e37:
                    continue  # its sums may overflow, or cancel
                if np.isfinite(weight[row]).all():
                    off = np.abs(found[:, row] - exact[:, row])
                    assert (off <= bound[row] + 1e-30).all()
                else:
                    assert not np.isfinite(found[:, row]).any()
    return 2


def main() -> None:
    """Go through all scales, widths and numbers of tokens."""
    done = 0
    for variant in VARIANTS:
        for number, (kind, patterns) in enumerate(BITS.items()):
            for pattern in patterns.values():
                symmetric = variant.symmetric[done % len(variant.symmetric)]
                matrix = hostile(kind, variant.bits, variant.group_sizes[0], pattern, symmetric)
                for tokens in (1, 9):
                    done += check(matrix, tokens, at_end=bool((done + number) % 2))
    print(done)


if __name__ == "__main__":
    main()
