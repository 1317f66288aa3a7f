import numpy as np
import pytest
from emitted import Piece, name_of, runnable
from packed_cases import placed, random_scales

from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.scales import load_floats, multiply_scales

HALVES = np.arange(65536, dtype=np.uint16)


def widen_all(goal, kind, bits):
    """Widen an array, a multiple of 8 long."""
    size = 4 if kind == "float32" else 2

    def emit(emitter, args):
        def body(i, values):
            loaded = load_floats(emitter, kind, emitter.add(args[0], emitter.mul(i, size)))
            emitter.store(loaded, emitter.add(args[2], emitter.mul(i, 4)))
            return values

        emitter.loop(args[1], 8, [], body)

    out = np.empty(bits.nbytes // size, np.float32)
    Piece(goal, 3, emit)(bits, out.size, out)
    return out


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
def test_every_half_and_bfloat(goal):
    found = widen_all(goal, "float16", HALVES)
    expected = HALVES.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    found = widen_all(goal, "bfloat16", HALVES)
    np.testing.assert_array_equal(found.view(np.uint32), HALVES.astype(np.uint32) << 16)
    words = np.random.default_rng(0).integers(0, 1 << 32, 64, np.uint32)
    np.testing.assert_array_equal(widen_all(goal, "float32", words).view(np.uint32), words)


def widened(scale, kind):
    if kind == "float16":
        return scale.view(np.float16).astype(np.float32)
    return scale.view(np.float32) if kind == "float32" else (scale.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kind", sorted(SCALE_KINDS))
@pytest.mark.parametrize("repeat", [1, 2, 3, 8])
@pytest.mark.parametrize("stored", [True, False])
def test_products_of_scales(kind, repeat, stored):
    rng = np.random.default_rng(repeat)
    for groups in (1, 2, 7, 8, 9, 16, 20, 33):
        count = groups * repeat
        room = -(-count // 8) * 8
        scale = placed(random_scales(rng, (1, groups), kind), 2)
        zero = placed(rng.integers(0, 256, groups if stored else 8, np.uint8), 3)
        if not stored:
            zero[:] = zero[0]
        x, sums = np.zeros((2, room), np.float32)
        x[:count], sums[:count] = rng.uniform(0, 1, count), rng.standard_normal(count)
        form = np.float32(0.5), np.float32(128)
        spare, out = np.full(5 * room, 255, np.uint8), np.full(room + 1, np.nan, np.float32)
        taken = multiply_scales(
            (scale.ctypes.data, SCALE_KINDS[kind], count, repeat),
            (zero.ctypes.data, int(stored)),
            form,
            (x.ctypes.data, sums.ctypes.data),
            spare.ctypes.data,
            out.ctypes.data,
        )
        values = np.repeat(widened(scale, kind).ravel(), repeat)
        np.testing.assert_array_equal(out[:count], values * x[:count])
        assert not out[count:room].any()
        assert np.isnan(out[room])
        points = np.repeat(zero, repeat) if stored else np.full(count, zero[0])
        terms = values.astype(np.float64) * (0.5 * points - 128) * sums[:count]
        assert abs(taken - terms.sum()) <= 1e-6 * np.abs(terms).sum()
