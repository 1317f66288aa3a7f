import numpy as np
import pytest
from emitted import Piece, name_of, runnable
from llvmlite import ir
from packed_cases import placed, random_scales

from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.scales import RowScales, load_floats, widen_scales
from llmq_kernels.simd import F32

HALVES = np.arange(65536, dtype=np.uint16)


def widen_all(goal, kind, bits):
    """Widen an array, a multiple of 8 long."""
    size = 4 if kind == "float32" else 2

    def emit(emitter, args):
        def body(i, values):
            loaded = load_floats(emitter, kind, emitter.add(args[0], emitter.mul(i, size)), 8)
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
def test_widening_of_a_row(kind, repeat):
    rng = np.random.default_rng(repeat)
    for groups in (1, 2, 7, 8, 9, 16, 20, 33):
        count = groups * repeat
        room = -(-count // 8) * 8
        scale = placed(random_scales(rng, (1, groups), kind), 2)
        spare, out = np.full(4 * room, 255, np.uint8), np.full(room + 1, np.nan, np.float32)
        widen_scales((scale.ctypes.data, SCALE_KINDS[kind], count, repeat), spare.ctypes.data, out.ctypes.data)
        np.testing.assert_array_equal(out[:count], np.repeat(widened(scale, kind).ravel(), repeat))
        assert not out[count:room].any()
        assert np.isnan(out[room])


def load_rows(goal, form, numbers, scale, zero):
    """Scales and zero points of rows, float32 (rows, lanes) each, from group `first` of `count` on."""
    rows, (first, count, kind, step) = len(scale), numbers
    found = np.full((2, rows, goal.lanes), np.nan, np.float32)

    def emit(emitter, args):
        # The addresses are those of arrays: of each row, its scales and zero points.
        places = [
            (emitter.number(s.ctypes.data), emitter.number(z.ctypes.data)) for s, z in zip(scale, zero, strict=True)
        ]
        constants = [ir.Constant(F32, float(value)) for value in form]
        loader = RowScales(emitter, emitter.number(kind), places[0][1], emitter.number(step), constants)
        groups = emitter.number(first), emitter.number(count - first)
        parts = loader.load(places, groups, emitter.number(0))
        for number, vector in enumerate(vector for part in parts for vector in part):
            emitter.store(vector, args[0], 4 * goal.lanes * number)

    Piece(goal, 1, emit)(found)
    return found


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
@pytest.mark.parametrize("kind", sorted(SCALE_KINDS))
@pytest.mark.parametrize("stored", [True, False])
def test_scales_and_zero_points_of_rows(goal, kind, stored):
    rng = np.random.default_rng(1)
    rows, lanes, form = 3, goal.lanes, (0.5, 128.0)
    for count, first in ((3 * lanes, lanes), (lanes + 3, lanes), (1, 0)):
        scale = random_scales(rng, (rows, 3 * lanes), kind)
        zero = rng.integers(0, 256, (rows, 3 * lanes), np.uint8)
        scales, zeros = load_rows(goal, form, (first, count, SCALE_KINDS[kind], int(stored)), scale, zero)
        expected = widened(scale, kind)[:, first : first + lanes]
        expected[:, count - first :] = 0
        np.testing.assert_array_equal(scales, expected)
        points = zero[:, first : first + lanes] if stored else np.broadcast_to(zero[0, :lanes], (rows, lanes))
        np.testing.assert_array_equal(zeros, points * np.float32(0.5) - np.float32(128))


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
def test_scales_beyond_the_last_group_may_be_anything(goal):
    scale = np.full((1, goal.lanes), np.nan, np.float32)
    scale[0, 0] = 2
    scales, _ = load_rows(
        goal, (1, 0), (0, 1, SCALE_KINDS["float32"], 0), scale.view(np.uint32), np.ones((1, 16), np.uint8)
    )
    assert scales.tolist() == [[2.0] + [0.0] * (goal.lanes - 1)]
