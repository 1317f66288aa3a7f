"""SHA-256 of two streams at a time, by the instructions that some x86 CPUs have for it.

One stream waits for each of its rounds; two, which have nothing to do with each other, fill each other's gaps.
"""

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.jit import jit
from llmq_kernels.simd import I32, I64, host_features, intrinsic

__all__ = ["START", "compress", "has_sha", "hash_blocks"]


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root_bits(number: int) -> int:
    """First 32 bits of the fraction of a cube root."""
    root = round(math.cbrt(number) * 2**32)
    while root**3 > number << 96:
        root -= 1
    while (root + 1) ** 3 <= number << 96:
        root += 1
    return root % 2**32


_ROUNDS: Final = tuple(_cube_root_bits(prime) for prime in _primes(64))
"""Constants of the rounds (FIPS 180-4, section 4.2.2)."""

_INITIAL: Final = tuple(math.isqrt(prime << 64) % 2**32 for prime in _primes(8))

ORDER: Final = (5, 4, 1, 0, 7, 6, 3, 2)
"""Which of the words `a` to `h` stands where in a state: as the instructions want them."""

START: Final = tuple(_INITIAL[word] for word in ORDER)
"""The state of a stream of which nothing has been hashed."""

_WORDS: Final = ir.VectorType(I32, 4)


def has_sha() -> bool:
    """Whether kernels may use the instructions."""
    return {"sha", "ssse3"} <= host_features()


class _Stream:
    """Emits the rounds of one stream: its message, its state, four rounds at a time."""

    def __init__(self, builder: Any, state: Any) -> None:
        self.builder = builder
        self.state = [cgutils.alloca_once_value(builder, self._load(state, 16 * half)) for half in range(2)]

    def _load(self, address: Any, offset: int) -> Any:
        place = self.builder.inttoptr(self.builder.add(address, I64(offset)), ir.PointerType())
        return self.builder.load(place, align=1, typ=_WORDS)

    def _call(self, name: str, *args: Any) -> Any:
        kind = ir.FunctionType(_WORDS, [_WORDS] * len(args))
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def _shuffle(self, a: Any, b: Any, order: tuple[int, ...]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(_WORDS, list(order)))

    def begin(self, data: Any) -> None:
        """Take a block of 64 bytes."""
        loaded = [self._load(data, 16 * i) for i in range(4)]
        self.words = [self._call("llvm.bswap.v4i32", words) for words in loaded]
        self.before = [self.builder.load(place) for place in self.state]
        self.abef, self.cdgh = self.before

    def four_rounds(self, i: int) -> None:
        """Do rounds ``4 * i`` to ``4 * i + 3``."""
        if i >= 4:
            last, second = self.words[i - 1], self.words[i - 2]
            mixed = self._call("llvm.x86.sha256msg1", self.words[i - 4], self.words[i - 3])
            mixed = self.builder.add(mixed, self._shuffle(second, last, (1, 2, 3, 4)))
            self.words.append(self._call("llvm.x86.sha256msg2", mixed, last))
        keyed = self.builder.add(self.words[i], ir.Constant(_WORDS, list(_ROUNDS[4 * i : 4 * i + 4])))
        self.cdgh = self._call("llvm.x86.sha256rnds2", self.cdgh, self.abef, keyed)
        self.abef = self._call("llvm.x86.sha256rnds2", self.abef, self.cdgh, self._shuffle(keyed, keyed, (2, 3, 0, 0)))

    def end(self) -> None:
        """Add what the block made of the state."""
        for place, old, new in zip(self.state, self.before, (self.abef, self.cdgh), strict=True):
            self.builder.store(self.builder.add(old, new), place)

    def finish(self, state: Any) -> None:
        """Write the state back."""
        for half, place in enumerate(self.state):
            address = self.builder.inttoptr(self.builder.add(state, I64(16 * half)), ir.PointerType())
            self.builder.store(self.builder.load(place), address, align=1)


@intrinsic
def compress(typingctx: Any, count: Any, streams: Any) -> Any:
    """Hash `count` blocks of 64 bytes of each stream; `streams` are int64 addresses: state, data, state, data, ..."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        pairs = list(zip(values[::2], values[1::2], strict=True))
        emitters = [_Stream(builder, state) for state, _ in pairs]
        with cgutils.for_range(builder, args[0], intp=I64) as loop:
            for stream, (_, data) in zip(emitters, pairs, strict=True):
                stream.begin(builder.add(data, builder.mul(loop.index, I64(64))))
            for i in range(16):
                for stream in emitters:
                    stream.four_rounds(i)
            for stream in emitters:
                stream.end()
        for stream, (state, _) in zip(emitters, pairs, strict=True):
            stream.finish(state)
        return context.get_dummy_value()

    return types.void(types.int64, streams), emit


@jit
def hash_blocks(one: tuple[int, int, int], two: tuple[int, int, int]) -> None:
    """Hash blocks of two streams, each (address of the state, of the data, number of blocks).

    A state is uint32 (8,), in `ORDER`; nothing is touched of a stream without blocks.
    """
    both = min(one[2], two[2])
    if both > 0:
        compress(both, (one[0], one[1], two[0], two[1]))
    rest = one if one[2] > both else two
    if rest[2] > both:
        compress(rest[2] - both, (rest[0], rest[1] + 64 * both))
