from functools import partial

import numpy as np
import pytest
from emitted import Piece, name_of, runnable

from llmq_kernels.pack import pack_reference
from llmq_kernels.planes import chunk_bytes, chunk_codes, load_words, planes_of, split_planes, unpack_planes

pytestmark = pytest.mark.emitted


def unpack_in_two_steps(emitter, bits, address):
    return split_planes(emitter, bits, load_words(emitter, bits, address))


def store_planes(unpack, bits, emitter, args):
    for i, plane in enumerate(unpack(emitter, bits, args[0])):
        emitter.store(plane, args[1], i * emitter.target.width)


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_of_a_chunk(goal, bits):
    pieces = [Piece(goal, 2, partial(store_planes, unpack, bits)) for unpack in (unpack_planes, unpack_in_two_steps)]
    rng = np.random.default_rng(bits)
    count, planes = chunk_codes(bits, goal.width), planes_of(bits)
    for codes in (rng.integers(0, 1 << bits, (1, count), np.uint8), np.full((1, count), 2**bits - 1, np.uint8)):
        packed = pack_reference(codes, bits)[:, : chunk_bytes(bits, goal.width)]
        # What lies behind a chunk is read by some widths, and must not matter.
        for beyond in (0, 255):
            source = np.full(packed.size + 17, beyond, np.uint8)
            source[1 : packed.size + 1] = packed[0]
            for piece in pieces:
                found = np.zeros((planes, goal.width), np.uint8)
                piece(source[1:], found)
                np.testing.assert_array_equal(found, codes.reshape(goal.width, planes).T)


def test_chunks_are_whole_bytes_and_lanes():
    for bits in range(1, 9):
        for width in (16, 32, 64):
            assert chunk_codes(bits, width) == width * planes_of(bits)
            assert chunk_bytes(bits, width) * 8 == chunk_codes(bits, width) * bits
            assert 512 % chunk_codes(bits, width) == 0
