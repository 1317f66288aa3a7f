"""Codes of one row to its bit stream, as explicit vectors; see `llmq_kernels.layout`."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.elementwise import Elements, data_of, emit_loops
from llmq_kernels.simd import intrinsic

__all__ = ["pack_row"]

_I8: Final = ir.IntType(8)
_I64: Final = ir.IntType(64)

_HALVES: Final = ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0x00000000FFFFFFFF))
"""Codes that stand in each field of a word, and the lower one of each pair of fields."""


def _put_bytes(builder: Any, word: Any, data: Any, first: Any, count: Any) -> None:
    """Write the low `count` bytes of a word."""
    with cgutils.for_range(builder, count) as loop:
        byte = builder.trunc(builder.lshr(word, builder.mul(loop.index, _I64(8))), _I8)
        builder.store(byte, builder.gep(data, [builder.add(first, loop.index)]))


def _joined(builder: Any, word: Any, bits: Any) -> Any:
    """Bring the codes in the bytes of a word together, pairs first: 64 bits to ``8 * bits``."""
    gap = builder.sub(_I64(8), bits)
    for codes, mask in _HALVES:
        upper = builder.and_(word, _I64(mask ^ (2**64 - 1)))
        moved = builder.lshr(upper, builder.mul(gap, _I64(codes)))
        word = builder.or_(builder.and_(word, _I64(mask)), moved)
    return word


def _emit_width(builder: Any, data: Any, packed: Any, blocks: Any, bits: int) -> None:
    """Pack `blocks` times 8 codes of 8, 4 or 2 bits: each byte from a word of as many bytes as it holds codes."""
    word = ir.IntType(64 // bits)

    def body(e: Elements, index: Any) -> None:
        found, joined = e.load(data, index, word), 1
        while joined < 8 // bits:
            moved = e.builder.lshr(found, e.constant(found.type, (8 - bits) * joined))
            found, joined = e.builder.or_(found, moved), 2 * joined
        e.store(found if word == _I8 else e.builder.trunc(found, e.kind(_I8)), packed, index, _I8)

    emit_loops(builder, builder.mul(blocks, _I64(bits)), body)


@intrinsic
def pack_row(typing: Any, codes: Any, bits: Any, packed: Any) -> Any:
    """Pack one row.

    Parameters
    ----------
    codes : uint8 (columns,)
        Each below `2**bits`.
    bits : int
        1 to 8.
    packed : uint8 (row_bytes,)
        Written whole, padding included.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, (count,) = data_of(context, builder, signature.args[0], args[0])
        written, (size,) = data_of(context, builder, signature.args[2], args[2])
        width = args[1]
        blocks = builder.udiv(count, _I64(8))  # 8 codes fill whole bytes
        after, plain = builder.append_basic_block("packed"), builder.append_basic_block("any")
        switch = builder.switch(width, plain)
        for bits in (8, 4, 2):
            block = builder.append_basic_block(f"bits{bits}")
            switch.add_case(_I64(bits), block)
            with builder.goto_block(block):
                _emit_width(builder, data, written, blocks, bits)
                builder.branch(after)
        builder.position_at_end(plain)
        with cgutils.for_range(builder, blocks) as loop:
            place = builder.gep(data, [builder.mul(loop.index, _I64(8))])
            eight = builder.load(builder.bitcast(place, _I64.as_pointer()), align=1)
            _put_bytes(builder, _joined(builder, eight, width), written, builder.mul(loop.index, width), width)
        builder.branch(after)
        builder.position_at_end(after)
        rest = cgutils.alloca_once_value(builder, _I64(0))
        done = builder.mul(blocks, _I64(8))
        with cgutils.for_range(builder, builder.sub(count, done)) as loop:
            code = builder.zext(builder.load(builder.gep(data, [builder.add(done, loop.index)])), _I64)
            moved = builder.shl(code, builder.mul(loop.index, width))
            builder.store(builder.or_(builder.load(rest), moved), rest)
        first = builder.mul(blocks, width)
        _put_padded(builder, builder.load(rest), written, first, builder.sub(size, first))
        return context.get_dummy_value()

    return types.void(codes, types.int64, packed), emit


def _put_padded(builder: Any, word: Any, data: Any, first: Any, count: Any) -> None:
    """Write the bytes of a word, and zeros after them, `count` in all."""
    left = cgutils.alloca_once_value(builder, word)
    with cgutils.for_range(builder, count) as loop:
        found = builder.load(left)
        builder.store(builder.trunc(found, _I8), builder.gep(data, [builder.add(first, loop.index)]))
        builder.store(builder.lshr(found, _I64(8)), left)
