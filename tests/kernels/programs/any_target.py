"""Multiply by packed weights with the instruction set of the environment, or with a stand-in for another.

Arguments: widths of codes, and before them `--stand-in NAME WIDTH`: code is emitted for that instruction set and for
vectors of that many bytes, but for its one instruction, which multiplies and adds step by step instead.
Prints the instruction set, then how many products were right.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from packed_cases import FEW, VARIANTS, check_product, random_packed

from llmq_kernels import simd
from llmq_kernels.attention import attention, attention_reference
from llmq_kernels.convolution import Convolution, integer_convolve, integer_convolve_reference
from llmq_kernels.dense import matmul_dense, matmul_dense_reference
from llmq_kernels.floats import narrow
from llmq_kernels.integer import integer_matmul, integer_matmul_reference
from llmq_kernels.integer_weight import IntegerWeight
from llmq_kernels.keyvalue_rows import decode_rows_reference
from llmq_kernels.keyvalues import KV_BITS, KeyValues
from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.tiles import tile_rows, tile_shape

if TYPE_CHECKING:
    from collections.abc import Sequence


class StandIn(simd.Accumulator):
    """What every instruction set computes, in instructions that every CPU has."""

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        """Widen, take the offset off, multiply, and add each fourth product."""
        builder, count = self.emitter.builder, codes.type.count
        wide = ir.VectorType(simd.I16, count)
        lost = simd.constant(wide, self.emitter.target.offset(self.bits))
        products = builder.mul(builder.sub(builder.zext(codes, wide), lost), builder.sext(x, wide))
        for i in range(4):
            part = self.emitter.shuffle(products, None, list(range(i, count, 4)))
            running = builder.add(running, builder.sext(part, running.type))
        return running


def stand_in(name: str, width: str) -> None:
    """Emit for another instruction set; its code needs a cache of its own."""
    forced = simd.Target(name, int(width), half=simd.target().half)
    simd.target.cache_clear()
    simd.target_for = lambda features, cpu: forced
    simd.ACCUMULATORS[name] = StandIn


def products(bits: int) -> int:
    """Multiply one token, a few, and many, by rows of every remainder, zero points and not."""
    rng = np.random.default_rng(bits)
    small, large = (variant for variant in VARIANTS if variant.bits == bits and variant.group in (16, 32, 256))
    done = 0
    few = next(n for n in small.tokens if 1 < n <= FEW)
    # Of large groups every other width decodes one token, and the others read many: each takes a second to compile.
    for variant, numbers in ((small, (few, 9)), (large, (1,) if bits % 2 == 0 else (7,))):
        for tokens in numbers:
            for rows in (1, 4, 17, 70):
                for kind in sorted(SCALE_KINDS):
                    group_size = variant.group_sizes[done % len(variant.group_sizes)]
                    # Prefill has a variant for symmetric weights, decoding none.
                    symmetric = bool(done % 2) if tokens <= FEW else variant.symmetric[0]
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


def integer_products(bits: int) -> int:
    """Multiply and convolve in integers, by tiles of all rows and of some."""
    rng = np.random.default_rng(0)
    rows = 2 * tile_rows(simd.target()) + 5
    weight = IntegerWeight.of(rng.integers(0, 2**bits, (rows, 99), np.uint8), bits)
    x = rng.integers(-128, 128, (19, 99), np.int8)
    np.testing.assert_array_equal(integer_matmul(x, weight, x_zero_point=3), integer_matmul_reference(x, weight, 3))
    images, geometry = rng.integers(-128, 128, (2, 11, 9, 9), np.int8), Convolution((3, 3), padding=(1, 1))
    found = integer_convolve(images, weight, geometry, x_zero_point=3)
    np.testing.assert_array_equal(found, integer_convolve_reference(images, weight, geometry, 3))
    taps = IntegerWeight.of(rng.integers(0, 2**bits, (11, 9), np.uint8), bits)
    depthwise = Convolution((3, 3), padding=(1, 1), groups=11)
    found = integer_convolve(images, taps, depthwise, x_zero_point=3)
    np.testing.assert_array_equal(found, integer_convolve_reference(images, taps, depthwise, 3))
    return 3


def attention_products(kinds: Sequence[int]) -> int:
    """Attend to caches of some kinds from few tokens and many, alone and in groups."""
    rng, done = np.random.default_rng(0), 0
    for bits in kinds:
        for tokens, heads in ((1, 1), (1, 8), (9, 2)):
            keys, values = rng.standard_normal((2, 2, 300, 80)).astype(np.float32)
            cache = KeyValues.of(keys, values, bits)
            pairs = (cache.keys, cache.key_scale), (cache.values, cache.value_scale)
            held = [decode_rows_reference(*pair)[:, :, :80] for pair in pairs]
            queries = rng.standard_normal((tokens, 2 * heads, 80)).astype(np.float32)
            expected = attention_reference(queries, *held, 290)
            np.testing.assert_allclose(attention(queries, cache, start=290), expected, rtol=2e-4, atol=2e-5)
            done += 1
    return done


def main() -> None:
    """Choose and multiply."""
    arguments = sys.argv[1:]
    if arguments[0] == "--stand-in":
        stand_in(*arguments[1:3])
        arguments = arguments[3:]
    print(simd.target().name, simd.target().width, *tile_shape(simd.target()))
    # With all widths all kinds of caches, which take seconds each to compile; else the one with most code of its own.
    kinds = KV_BITS if len(arguments) > 1 else (4,)
    others = dense_products() + sum(integer_products(int(bits)) for bits in arguments) + attention_products(kinds)
    print(sum(products(int(bits)) for bits in arguments) + others)


if __name__ == "__main__":
    main()
