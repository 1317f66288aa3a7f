"""Sums of products of packed chunks and activations, as decoding takes them: for each width the way of fewest steps.

Most widths are unpacked to bytes (see `llmq_kernels.planes`) and meet the dot product of the instruction set. Narrow
codes on AVX2 are cheaper where they lie: a code at bit `s` of a byte counts `2**s` times, products of equal weight are
added in 16 bits, and the weights are made equal once for all of a group. The sums are then a fixed power of two too
large (`Chunks.excess`), which the caller takes off a whole row.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir

from llmq_kernels.planes import chunk_bytes, chunk_codes, planes_of, unpack_planes
from llmq_kernels.simd import ACCUMULATORS, I8, I16, I32, Avx2, constant, new_accumulator

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmq_kernels.simd import Emitter, Target

__all__ = ["ACTIVATION_ORDERS", "Chunks", "adds_words", "chunks_of", "new_chunks"]


class Chunks:
    """Chunks of any width on any instruction set.

    Parameters
    ----------
    emitter : Emitter
    bits : int
    """

    excess: int = 1
    """How many times too large the sums are."""

    def __init__(self, emitter: Emitter, bits: int) -> None:
        self.emitter = emitter
        self.bits = bits
        self.accumulator = new_accumulator(emitter, bits)

    def load_planes(self, address: Any) -> list[Any]:
        """Load a chunk as vectors of bytes that `sum_of` multiplies."""
        return unpack_planes(self.emitter, self.bits, address)

    def load_x(self, address: Any) -> list[Any]:
        """Load the activations of a chunk: a vector for each plane."""
        emitter, count = self.emitter, chunks_of(self.bits, self.emitter.target)[2]
        width = emitter.target.width
        return [emitter.load(address, ir.VectorType(I8, width), width * plane) for plane in range(count)]

    def sum_of(self, chunks: Sequence[tuple[list[Any], list[Any]]]) -> Any:
        """Sum the products of chunks, (planes, activations) each, in int32 lanes."""
        pairs = [pair for planes, x in chunks for pair in zip(planes, x, strict=True)]
        return self.accumulator.sum_of(pairs)

    def words_of(self, pairs: Iterable[tuple[Any, Any]], start: Any = None) -> Any:
        """Sum the products of planes and activations, without settling; the accumulator must hold them."""
        start = self.accumulator.zero() if start is None else start
        return functools.reduce(lambda total, pair: self.accumulator.add(total, *pair), pairs, start)


class _InPlace(Chunks):
    """Codes of 1 and 2 bits on AVX2: one shift brings the upper half of each byte down, masks do the rest.

    The sums of one chunk stay below 4064 and 12,192, so that 16 bits hold those of a group of 256.
    """

    def __init__(self, emitter: Emitter, bits: int) -> None:
        super().__init__(emitter, bits)
        self.fields = 4 // bits
        self.excess = 1 << (bits * (self.fields - 1))

    def load_planes(self, address: Any) -> list[Any]:
        emitter, builder = self.emitter, self.emitter.builder
        words = emitter.load(address, ir.VectorType(I32, emitter.target.lanes))
        planes = []
        for half in (words, builder.lshr(words, constant(words.type, 4))):
            for field in range(self.fields):
                mask = ((1 << self.bits) - 1) << (self.bits * field)
                kept = builder.and_(half, constant(words.type, mask * 0x01010101))
                planes.append(builder.bitcast(kept, ir.VectorType(I8, emitter.target.width)))
        return planes

    def sum_of(self, chunks: Sequence[tuple[list[Any], list[Any]]]) -> Any:
        builder = self.emitter.builder
        pairs = [pair for planes, x in chunks for pair in zip(planes, x, strict=True)]
        total: Any = None
        for field in range(self.fields):
            own = self.words_of(pairs[field :: self.fields])
            total = own if total is None else builder.add(builder.shl(total, constant(total.type, self.bits)), own)
        return self.accumulator.settle(total)


class _Three(Chunks):
    """Codes of 3 bits on AVX2: of 64 codes, most lie within one of 24 bytes, and 16 lie in two.

    Of 16 codes, which are 6 bytes `b`, eight bytes hold those of equal place side by side::

        word        0      1      2      3
        bytes       b0 b3  b1 b4  b2 b5  -
        bits 0-4    0 8    3 11   6 14   -       masked with 7, 14, 28
        bits 3-7    1 9    4 12   7 15   -       shifted by 3, masked alike
        straddling  b0 b1  b1 b2  b3 b4  b4 b5
                    2      5      10     13      shifted by 6 and 4, masked with 7, 14, 28, 56

    So a code counts 1, 2, 4 or 8 times in its word; 8, 4, 2 and 1 make that eightfold for all when pairs of words are
    added. Words stay below 17,781.
    """

    excess = 8

    def load_planes(self, address: Any) -> list[Any]:
        emitter, builder = self.emitter, self.emitter.builder
        halves = [emitter.load(address, ir.VectorType(I8, 16), 12 * half) for half in range(2)]
        loaded = emitter.shuffle(halves[0], halves[1], range(32))
        units = [base + unit for base in (0, 16) for unit in (0, 6)]
        within, across = (
            builder.bitcast(emitter.shuffle(loaded, None, [unit + i for unit in units for i in order]), _WORDS)
            for order in ((0, 3, 1, 4, 2, 5, 2, 5), (0, 1, 1, 2, 3, 4, 4, 5))
        )
        mask = _repeated(0x0E0E0707, 0x00001C1C)
        planes = [
            builder.and_(within, mask),
            builder.and_(builder.lshr(within, constant(_WORDS, 3)), mask),
            builder.and_(builder.lshr(across, _repeated(6, 4)), _repeated(0x000E0007, 0x0038001C)),
        ]
        return [builder.bitcast(plane, ir.VectorType(I8, 32)) for plane in planes]

    def sum_of(self, chunks: Sequence[tuple[list[Any], list[Any]]]) -> Any:
        builder = self.emitter.builder
        factors = ir.Constant(ir.VectorType(I16, 16), [ir.Constant(I16, n) for n in (8, 4, 2, 1)] * 4)
        sums = []
        for planes, x in chunks:
            words = self.words_of(zip(planes, x, strict=True))
            sums.append(self.emitter.call("llvm.x86.avx2.pmadd.wd", _WORDS, words, factors))
        return functools.reduce(builder.add, sums)


_WORDS: Final = ir.VectorType(I32, 8)


def _repeated(*values: int) -> Any:
    """Make a constant of 8 words."""
    return ir.Constant(_WORDS, [ir.Constant(I32, value) for value in values] * (8 // len(values)))


def _order_of_three() -> list[int]:
    """Order of activations that `_Three` multiplies: of 64 codes, for each byte the number of its code, or none."""
    within, place = (0, 8, 3, 11, 6, 14), [16 * unit for unit in range(4)]
    planes = [[start + code + step for code in within] + [_NONE] * 2 for step in (0, 1) for start in place]
    planes += [[n for code in (2, 5, 10, 13) for n in (start + code, _NONE)] for start in place]
    return [n for unit in planes for n in unit]


_NONE: Final = 64
"""A byte that no code meets: the first of the zeros that are behind the codes while they are put into order."""

ACTIVATION_ORDERS: Final = {3: _order_of_three()}
"""Orders other than that of `llmq_kernels.planes`, by the number of planes."""


def adds_words(goal: Target) -> bool:
    """Whether products are added in 16 bits, two neighbours each, as on AVX2."""
    return issubclass(ACCUMULATORS[goal.name], Avx2)


def new_chunks(emitter: Emitter, bits: int) -> Chunks:
    """Return how chunks of a width are multiplied on the emitter's instruction set."""
    kinds = {1: _InPlace, 2: _InPlace, 3: _Three} if adds_words(emitter.target) else {}
    return kinds.get(bits, Chunks)(emitter, bits)


def chunks_of(bits: int, goal: Target) -> tuple[int, int, int]:
    """Return codes and bytes of a chunk, and vectors of activations that meet it.

    Examples
    --------
    >>> from llmq_kernels.simd import target_for
    >>> [chunks_of(bits, target_for(frozenset({"avx2"}))) for bits in (2, 3, 4, 5)]
    [(128, 32, 4), (64, 24, 3), (64, 32, 2), (32, 20, 1)]
    """
    if bits == 3 and adds_words(goal):
        return 64, 24, 3
    return chunk_codes(bits, goal.width), chunk_bytes(bits, goal.width), planes_of(bits)
