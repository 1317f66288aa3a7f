import numpy as np
import pytest
from emitted import Piece, name_of, runnable

from llmq_kernels.chunks import ACTIVATION_ORDERS, chunks_of, new_chunks
from llmq_kernels.pack import pack_reference
from llmq_kernels.planes import chunk_codes, planes_of

pytestmark = pytest.mark.emitted

EXTREMES = "all codes 1", "largest", "largest, signs alternate", "largest, most negative"


def product(goal, bits, chunks):
    """Piece that sums the products of some chunks: addresses of codes, activations and the int32 sums."""
    _, step, vectors = chunks_of(bits, goal)

    def emit(emitter, args):
        dot = new_chunks(emitter, bits)
        parts = [
            (
                dot.load_planes(emitter.add(args[0], chunk * step)),
                dot.load_x(emitter.add(args[1], chunk * vectors * goal.width)),
            )
            for chunk in range(chunks)
        ]
        emitter.store(dot.sum_of(parts), args[2])
        excesses.append(dot.excess)

    excesses = []
    return Piece(goal, 3, emit), excesses[0]


def arranged(x, bits, goal):
    """Activations, int8 (chunks, codes), in the order that the chunks of a width meet them."""
    codes, _, vectors = chunks_of(bits, goal)
    order = ACTIVATION_ORDERS.get(vectors)
    if order is None:
        order = np.arange(codes).reshape(-1, vectors).T.ravel()
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, 1)))[:, order])


def draw(rng, case, bits, shape):
    """Codes and activations of a kind."""
    codes, x = rng.integers(0, 1 << bits, shape, np.uint8), rng.integers(-127, 128, shape).astype(np.int8)
    if case == "all codes 1":
        codes[...] = 1
    elif case != "random":
        codes[...], x[...] = 2**bits - 1, 127
        x[:, 1::2] = -127 if "alternate" in case else 127
        x *= -1 if "negative" in case else 1
    return codes, x


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
@pytest.mark.parametrize("bits", range(1, 9))
def test_sums_of_a_group(goal, bits):
    codes_of_chunk, step, _ = chunks_of(bits, goal)
    rng = np.random.default_rng(bits)
    # Groups of activations have 256 columns at most, and a chunk may hold several.
    for chunks in {1, max(1, 256 // codes_of_chunk)}:
        piece, excess = product(goal, bits, chunks)
        for case in ("random", *EXTREMES):
            codes, x = draw(rng, case, bits, (chunks, codes_of_chunk))
            offset = goal.offset(bits)
            expected = ((codes.astype(int) - offset) * x).reshape(-1)
            for beyond in (0, 255):
                source = np.full(chunks * step + 17, beyond, np.uint8)
                source[: chunks * step] = pack_reference(codes.reshape(1, -1), bits)[0, : chunks * step]
                found = np.zeros(goal.lanes, np.int32)
                piece(source, arranged(x, bits, goal), found)
                assert found.sum() == excess * expected.sum()


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
@pytest.mark.parametrize("bits", range(1, 9))
def test_groups_within_a_chunk_have_lanes_of_their_own(goal, bits):
    codes_of_chunk = chunks_of(bits, goal)[0]
    rng = np.random.default_rng(bits)
    piece, excess = product(goal, bits, 1)
    codes, x = draw(rng, "random", bits, (1, codes_of_chunk))
    found = np.zeros(goal.lanes, np.int32)
    piece(np.pad(pack_reference(codes, bits)[0], (0, 17)), arranged(x, bits, goal), found)
    for group in (32,) if bits == 1 else (16, 32):
        if group < codes_of_chunk:
            expected = ((codes.astype(int) - goal.offset(bits)) * x).reshape(-1, group).sum(axis=1)
            np.testing.assert_array_equal(found.reshape(codes_of_chunk // group, -1).sum(axis=1), excess * expected)


def test_chunks_hold_whole_chunks_of_planes():
    # Rows are padded to chunks of decoding, and prefill unpacks them by its own.
    for goal in runnable():
        for bits in range(1, 9):
            codes, step, vectors = chunks_of(bits, goal)
            assert codes % chunk_codes(bits, goal.width) == 0
            assert codes * bits == 8 * step
            assert vectors in (planes_of(bits), *ACTIVATION_ORDERS)


def test_orders_meet_each_code_once():
    for vectors, order in ACTIVATION_ORDERS.items():
        numbers = sorted(set(order))
        assert numbers == list(range(numbers[-1] + 1))
        assert sorted(n for n in order if n < numbers[-1]) == numbers[:-1]
        assert len(order) == 32 * vectors
