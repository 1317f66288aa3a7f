"""Multiply by packed weights with a named instruction set, or that of the environment.

Arguments: widths of codes, and before them `--force NAME WIDTH HALF` to emit for something else than the CPU: everything
but the one instruction of another set runs then, `portable` with vectors of its width in its place.
Prints the instruction set, then how many products were right.
"""

from __future__ import annotations

import sys

import numpy as np
from packed_cases import VARIANTS, check_product, random_packed

from llmq_kernels import simd
from llmq_kernels.dense import matmul_dense, matmul_dense_reference
from llmq_kernels.floats import narrow
from llmq_kernels.layout import SCALE_KINDS


def force(name: str, width: str, half: str) -> None:
    """Emit for another instruction set; its code needs a cache of its own."""
    forced = simd.Target(name, int(width), half == "half")
    simd.target_for = lambda features: forced


def products(bits: int) -> int:
    """Multiply one token, a few, and many, rows of every remainder, zero points and not."""
    rng = np.random.default_rng(bits)
    small, large = (variant for variant in VARIANTS if variant.bits == bits and variant.group in (16, 32, 256))
    done = 0
    for variant, numbers in ((small, (2, 9)), (large, (7,))):
        for tokens in numbers:
            for rows in (1, 4, 17, 70):
                for kind in sorted(SCALE_KINDS):
                    group_size = variant.group_sizes[done % len(variant.group_sizes)]
                    # Prefill has a variant for symmetric weights, decoding none.
                    symmetric = bool(done % 2) if tokens <= 2 else variant.symmetric[0]
                    shape = rows, group_size * (1 + done % 6)
                    matrix = random_packed(rng, shape, (bits, group_size, symmetric), kind=kind, beside=done % 8)
                    x = rng.standard_normal((tokens, shape[1])).astype(np.float32)
                    x[:, rng.integers(shape[1])] *= 10
                    check_product(x, matrix)
                    done += 1
    return done


def dense_products() -> int:
    """Multiply by weights that are not quantized."""
    rng = np.random.default_rng(0)
    for kind in sorted(SCALE_KINDS):
        weight = rng.standard_normal((13, 77)).astype(np.float32)
        stored = weight if kind == "float32" else narrow(weight, kind)
        x = rng.standard_normal((3, 77)).astype(np.float32)
        off = np.abs(matmul_dense(x, stored, kind) - matmul_dense_reference(x, stored, kind))
        assert (off <= 1e-5 * np.abs(x) @ np.abs(weight).T).all(), kind
    return 3


def main() -> None:
    """Choose and multiply."""
    arguments = sys.argv[1:]
    if arguments[0] == "--force":
        force(*arguments[1:4])
        arguments = arguments[4:]
    print(simd.target().name, simd.target().width, simd.target().half)
    print(sum(products(int(bits)) for bits in arguments) + dense_products())


if __name__ == "__main__":
    main()
