"""Tiles: some columns of packed rows, unpacked once, that many tokens meet.

In a tile each 32-bit lane of a vector belongs to one row and holds four of its codes, so that sums of integers need not
be added across lanes, and activations come as four codes for all lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from numba.core import types

from llmq_kernels.planes import chunk_bytes, load_words, planes_of, split_planes, split_words
from llmq_kernels.simd import Emitter, intrinsic, target
from llmq_kernels.workers import length

if TYPE_CHECKING:
    from llmq_kernels.simd import Target

__all__ = ["BLOCK", "tile_rows", "tile_shape", "unpack_tile"]

BLOCK: Final = 512
"""Columns of a tile: whole chunks of every width of code, and whole groups of activations."""

_SHAPES: Final = {"avx512vnni": (2, 6), "avxvnni": (2, 4), "avx2": (2, 4), "neon": (4, 4)}


def tile_shape(goal: Target) -> tuple[int, int]:
    """Return vectors of rows in a tile, and tokens that meet them at a time: registers hold their sums.

    AVX-512 units that start two products a cycle need as many operands: each four codes of a token serve two vectors,
    or else loads take longer than products.
    """
    return (1, 8) if goal.double_pumped else _SHAPES.get(goal.name, (2, 2))


def tile_rows(goal: Target) -> int:
    """Return the rows of a tile."""
    return tile_shape(goal)[0] * goal.lanes


@intrinsic
def unpack_tile(typingctx: Any, rows: Any, chunks: Any, tile: Any, bits: Any) -> Any:
    """Unpack some chunks of all rows of a tile.

    Parameters
    ----------
    rows : (int64, int64)
        Address of the first row's first chunk, bytes from one row to the next.
    chunks : int64
    tile : int64
        Address of the result, uint8 (codes / 4, vectors of rows, 4 * lanes), or int16 (codes / 2, vectors of rows, 2 *
        lanes): see `split_words`.
    bits : pointer
        Its length is the width of a code.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        n_bits, (vectors, _) = length(signature.args[3]), tile_shape(emitter.target)
        start, step = (builder.extract_value(args[0], i) for i in (0, 1))
        lanes, width, wide = emitter.target.lanes, emitter.target.width, emitter.target.operand(n_bits) == 2
        planes = 2 if wide else planes_of(n_bits)
        row_at = [emitter.add(start, emitter.mul(step, row)) for row in range(vectors * lanes)]

        def body(chunk: Any, values: list[Any]) -> list[Any]:
            at = emitter.mul(chunk, chunk_bytes(n_bits, width))
            out = emitter.add(args[2], emitter.mul(chunk, lanes * planes * vectors * width))
            for v in range(vectors):
                own = row_at[v * lanes : (v + 1) * lanes]
                words = [load_words(emitter, n_bits, emitter.add(row, at)) for row in own]
                for d, word in enumerate(_transpose(emitter, words)):
                    parts = split_words(emitter, word) if wide else split_planes(emitter, n_bits, word)
                    for f, plane in enumerate(parts):
                        emitter.store(plane, out, ((d * planes + f) * vectors + v) * width)
            return values

        emitter.loop(args[1], 1, [], body)
        return context.get_dummy_value()

    return types.void(rows, chunks, tile, bits), emit


def _transpose(emitter: Emitter, rows: list[Any]) -> list[Any]:
    """Transpose a square of 32-bit words: blocks of 1, 2, 4... words change places."""
    rows, count, size = list(rows), len(rows), 1
    while size < count:
        low = [i + count - size if i & size else i for i in range(count)]
        high = [i + count if i & size else i + size for i in range(count)]
        for i in range(count):
            if not i & size:
                a, b = rows[i], rows[i | size]
                rows[i], rows[i | size] = emitter.shuffle(a, b, low), emitter.shuffle(a, b, high)
        size *= 2
    return rows
