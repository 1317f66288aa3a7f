"""Packed codes to vectors of bytes, without shuffling where the width allows.

A chunk is what one step of a microkernel takes of a row. Codes of 1, 2, 4 and 8 bits stay where they are: plane `f` of
a chunk is its bytes shifted right by `f * bits` and masked, and byte `j` of that plane is element `j * planes + f`. The
activations are put into the same order once, and meet every row. Codes of other widths are spread out, 16 of them from
16 loaded bytes, and keep their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir

from llmq_kernels.simd import I8, I16, I32, constant

if TYPE_CHECKING:
    from llmq_kernels.simd import Emitter

__all__ = ["chunk_bytes", "chunk_codes", "load_words", "planes_of", "split_planes", "split_words", "unpack_planes"]


def planes_of(bits: int) -> int:
    """Return how many planes a chunk has.

    Examples
    --------
    >>> [planes_of(bits) for bits in range(1, 9)]
    [8, 4, 1, 2, 1, 1, 1, 1]
    """
    return 8 // bits if bits in (1, 2, 4) else 1


def chunk_codes(bits: int, width: int) -> int:
    """Codes of a chunk, for vectors of `width` bytes."""
    return width * planes_of(bits)


def chunk_bytes(bits: int, width: int) -> int:
    """Packed bytes of a chunk; loads may reach 16 bytes further."""
    return chunk_codes(bits, width) * bits // 8


def unpack_planes(emitter: Emitter, bits: int, address: Any) -> list[Any]:
    """Load a chunk and return its planes, vectors of uint8."""
    return split_planes(emitter, bits, load_words(emitter, bits, address))


def load_words(emitter: Emitter, bits: int, address: Any) -> Any:
    """Load a chunk as one vector of int32, codes of odd widths spread out to bytes."""
    words = ir.VectorType(I32, emitter.target.lanes)
    if bits in (1, 2, 4, 8):
        return emitter.load(address, words)
    return emitter.builder.bitcast(_spread(emitter, bits, address), words)


def split_planes(emitter: Emitter, bits: int, words: Any) -> list[Any]:
    """Planes of what `load_words` has loaded, vectors of uint8; each 32-bit lane by itself."""
    builder, bytes_ = emitter.builder, ir.VectorType(I8, emitter.target.width)
    if bits not in (1, 2, 4):
        return [builder.bitcast(words, bytes_)]
    mask = constant(words.type, (2**bits - 1) * 0x01010101)
    planes = []
    for plane in range(planes_of(bits)):
        shifted = builder.lshr(words, constant(words.type, plane * bits)) if plane else words
        planes.append(builder.bitcast(builder.and_(shifted, mask), bytes_))
    return planes


def split_words(emitter: Emitter, words: Any) -> list[Any]:
    """Codes of 8 bits, less 128, as vectors of int16 in 32-bit lanes: numbers 0 and 2 of each four, then 1 and 3."""
    builder, halves = emitter.builder, ir.VectorType(I16, emitter.target.width // 2)
    eight = constant(halves, 8)
    both = builder.bitcast(builder.xor(words, constant(words.type, 0x80808080)), halves)
    return [builder.ashr(builder.shl(both, eight), eight), builder.ashr(both, eight)]


def _spread(emitter: Emitter, bits: int, address: Any) -> Any:
    """Codes of an odd width: each in a 16-bit word, shifted up by a product and down again, then two words a byte."""
    if emitter.target.shifts_bytes:
        return _spread_by_shifts(emitter, bits, address)
    builder, width = emitter.builder, emitter.target.width
    loads = [emitter.load(address, ir.VectorType(I8, 16), 2 * bits * i) for i in range(width // 16)]
    while len(loads) > 1:
        pairs = zip(loads[::2], loads[1::2], strict=True)
        loads = [emitter.shuffle(a, b, list(range(2 * a.type.count))) for a, b in pairs]
    halves = [_words(emitter, bits, loads[0], first) for first in (0, 8)]
    low, high = (builder.bitcast(half, ir.VectorType(I8, width)) for half in halves)
    order = []
    for lane in range(0, width, 16):
        order += [lane + 2 * i for i in range(8)] + [width + lane + 2 * i for i in range(8)]
    return emitter.shuffle(low, high, order)


def _spread_by_shifts(emitter: Emitter, bits: int, address: Any) -> Any:
    """Codes of an odd width: the bytes of each eight codes go to 64 bits of their own, and each byte takes its bits."""
    width, kind = emitter.target.width, ir.VectorType(I8, emitter.target.width)
    size = chunk_bytes(bits, width)
    # Of powers of two, the largest first: no load may reach more than 16 bytes beyond the chunk.
    parts, start = [], 0
    while start < size:
        part = next(n for n in (64, 32, 16) if start + n <= size + 16)
        parts.append((start, part))
        start += part
    loaded = [emitter.load(address, ir.VectorType(I8, part), place) for place, part in parts]
    data = loaded[0]
    for more in loaded[1:]:
        wide = emitter.shuffle(more, None, list(range(data.type.count)))
        data = emitter.shuffle(data, wide, list(range(data.type.count + more.type.count)))
    order = [min(bits * (place // 8) + place % 8, data.type.count - 1) for place in range(width)]
    eights = emitter.shuffle(data, None, order)
    shifts = ir.Constant(kind, [ir.Constant(I8, bits * (place % 8)) for place in range(width)])
    codes = emitter.call("llvm.x86.avx512.pmultishift.qb.512", kind, shifts, eights)
    return emitter.builder.and_(codes, constant(kind, 2**bits - 1))


def _words(emitter: Emitter, bits: int, loaded: Any, first: int) -> Any:
    """Codes `first` to `first + 8` of each 16 loaded bytes as uint16."""
    builder, width = emitter.builder, emitter.target.width
    words = ir.VectorType(I16, width // 2)
    order, factors = [], []
    for lane in range(0, width, 16):
        for code in range(first, first + 8):
            byte, shift = divmod(code * bits, 8)
            order += [lane + byte, lane + byte + 1]
            factors.append(ir.Constant(I16, 1 << (16 - bits - shift)))
    spread = builder.bitcast(emitter.shuffle(loaded, None, order), words)
    up = builder.mul(spread, ir.Constant(words, factors))
    return builder.lshr(up, ir.Constant(words, [ir.Constant(I16, 16 - bits)] * words.count))
