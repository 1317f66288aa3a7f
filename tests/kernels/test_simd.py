import re

import numba
import numpy as np
import pytest
from emitted import MACHINES, Piece, assembly, build, name_of, runnable
from llvmlite import ir

from llmq_kernels.simd import (
    ACCUMULATORS,
    F32,
    I8,
    I32,
    Target,
    host_cpu,
    host_features,
    new_accumulator,
    target,
    target_for,
    tile_accumulator,
)

pytestmark = pytest.mark.emitted

TARGETS = {
    "avx512vnni": Target("avx512vnni", 64, half=True),
    "avxvnni": Target("avxvnni", 32, half=True),
    "avx2": Target("avx2", 32, half=True),
    "neon": Target("neon", 16, half=True),
    "portable": Target("portable", 16, half=False),
}

V512 = {"avx2", "f16c", "fma", "avx512f", "avx512vnni", "avx512bw", "avx512vl"}


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (V512, TARGETS["avx512vnni"]),
        (V512 | {"avxvnni"}, TARGETS["avx512vnni"]),
        (V512 - {"avx512bw"}, TARGETS["avx2"]),
        (V512 - {"avx512vl"} | {"avxvnni"}, TARGETS["avxvnni"]),
        ({"avx512f", "avx2"}, TARGETS["avx2"]),
        ({"avx2", "avxvnni", "f16c"}, TARGETS["avxvnni"]),
        ({"avxvnni"}, TARGETS["portable"]),
        ({"avx2"}, Target("avx2", 32, half=False)),
        ({"avx2", "avx512vbmi", "f16c"}, Target("avx2", 32, half=True)),
        (
            {"avx512vnni", "avx512bw", "avx512vl", "avx512f", "avx512vbmi"},
            Target("avx512vnni", 64, half=True, shifts_bytes=True),
        ),
        ({"neon", "dotprod"}, TARGETS["neon"]),
        ({"neon"}, Target("portable", 16, half=True)),
        ({"sse2", "avx", "f16c"}, Target("portable", 16, half=True)),
        (set(), TARGETS["portable"]),
    ],
)
def test_the_best_instruction_set_of_a_cpu(features, expected):
    assert target_for(frozenset(features)) == expected


def test_vectors_that_take_two_turns_are_known_by_the_processor():
    assert target_for(frozenset(V512), "znver4") == Target("avx512vnni", 64, half=True, double_pumped=True)
    assert not target_for(frozenset(V512), "sapphirerapids").double_pumped
    assert not target_for(frozenset({"avx2"}), "znver4").double_pumped


def test_the_processor_is_the_one_that_numba_compiles_for(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_NAME", "nehalem")
    assert host_cpu() == "nehalem"
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    assert host_cpu() not in ("", "nehalem")


def test_features_are_those_that_numba_compiles_for(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,-f16c,+fma,")
    assert host_features() == {"avx2", "fma"}
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    found = host_features()
    assert len(found) > 1
    monkeypatch.setattr(numba.config, "CPU_NAME", "nehalem")
    assert host_features() == found
    monkeypatch.setattr(numba.config, "ENABLE_AVX", 0)
    assert host_features() == {name for name in found if not name.startswith("avx")}


def test_this_process_has_one():
    assert target() == target_for(host_features(), host_cpu())
    assert target().name in ACCUMULATORS


def test_codes_that_lose_half_their_range():
    lost = {name: [goal.offset(bits) for bits in range(1, 9)] for name, goal in TARGETS.items()}
    assert {name for name, offsets in lost.items() if any(offsets)} == {"avx2", "neon"}
    assert lost["avx2"] == lost["neon"] == [0] * 7 + [128]


def dot(goal, bits, pairs):
    """Code that adds the products of `pairs` vectors of codes and activations to int32 lanes."""

    def emit(emitter, args):
        kind, width = ir.VectorType(I8, goal.width), goal.width
        loaded = [[emitter.load(a, kind, i * width) for a in args[:2]] for i in range(pairs)]
        lanes = emitter.load(args[2], ir.VectorType(I32, goal.lanes))
        emitter.store(new_accumulator(emitter, bits).sum_of(loaded, lanes), args[2])

    return emit


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
@pytest.mark.parametrize("bits", range(1, 9))
def test_sums_of_four_products(goal, bits):
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    burst = ACCUMULATORS[goal.name](type("emitter", (), {"target": goal}), bits).burst
    for pairs in (1, 3, min(2 * burst, 130) + 1) if burst < 1 << 30 else (1, 3):
        piece = Piece(goal, 3, dot(goal, bits, pairs))
        shape = pairs, goal.lanes, 4
        for codes, x in (
            (rng.integers(0, top + 1, shape), rng.integers(-127, 128, shape)),
            (np.full(shape, top), np.full(shape, 127)),
            (np.full(shape, top), np.full(shape, -127)),
            (np.zeros(shape, int), np.full(shape, -127)),
            (rng.choice([0, top], shape), rng.choice([-127, 0, 127], shape)),
        ):
            found = rng.integers(-1000, 1000, goal.lanes).astype(np.int32)
            expected = found + ((codes - goal.offset(bits)) * x).sum(axis=(0, 2))
            piece(codes.astype(np.uint8), x.astype(np.int8), found)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_burst_is_a_power_of_two_that_cannot_overflow(bits):
    emitter = type("emitter", (), {"target": TARGETS["avx2"]})
    burst = new_accumulator(emitter, bits).burst
    assert burst & (burst - 1) == 0
    assert burst * 2 * 127 * (2**bits - 1 if bits < 8 else 128) <= 32767


@pytest.mark.parametrize("goal", [goal for goal in runnable() if goal.operand(8) == 2], ids=name_of)
def test_sums_of_two_products_of_words(goal):
    def emit(emitter, args):
        dot = tile_accumulator(emitter, 8)
        pairs = [[emitter.load(a, dot.operand, i * goal.width) for a in args[:2]] for i in range(3)]
        emitter.store(dot.sum_of(pairs, emitter.load(args[2], dot.kind)), args[2])

    rng = np.random.default_rng(0)
    shape, piece = (3, goal.lanes, 2), Piece(goal, 3, emit)
    for codes in (rng.integers(-128, 128, shape), np.full(shape, -128), np.full(shape, 127)):
        for x in (rng.integers(-128, 128, shape), np.full(shape, -128)):
            found = rng.integers(-1000, 1000, goal.lanes).astype(np.int32)
            expected = found + (codes * x).sum(axis=(0, 2))
            piece(codes.astype(np.int16), x.astype(np.int16), found)
            np.testing.assert_array_equal(found, expected)


def test_operands_of_tiles_are_wide_where_pairs_would_not_fit():
    sizes = {name: [goal.operand(bits) for bits in range(1, 9)] for name, goal in TARGETS.items()}
    assert sizes.pop("avx2") == [1] * 7 + [2]
    assert all(size == [1] * 8 for size in sizes.values())


INSTRUCTIONS = {
    "avx512vnni": r"vpdpbusd\s.*%zmm",
    "avxvnni": r"vpdpbusd\s.*%ymm",
    "avx2": r"vpmaddubsw\s.*%ymm",
    "neon": r"sdot\s+v\d+\.4s",
    "portable": r"pmaddwd|pmullw",
}


@pytest.mark.parametrize("name", sorted(ACCUMULATORS))
@pytest.mark.parametrize("bits", [4, 8])
def test_the_instruction_is_used(name, bits):
    text = assembly(build(TARGETS[name], 3, dot(TARGETS[name], bits, 8)), MACHINES[name])
    found = len(re.findall(INSTRUCTIONS[name], text))
    assert found == 8 if name != "portable" else found >= 8


@pytest.mark.parametrize("goal", runnable(), ids=name_of)
def test_loops_vectors_and_sums(goal):
    kind = ir.VectorType(F32, goal.lanes)

    def emit(emitter, args):
        source, stop, out = args

        def body(i, sums):
            loaded = emitter.load(emitter.add(source, emitter.mul(i, 4)), kind)
            count = emitter.builder.add(sums[1], emitter.opaque(1))
            return [emitter.fma(loaded, emitter.splat(ir.Constant(F32, 2.0)), sums[0]), count]

        total, rounds = emitter.loop(stop, goal.lanes, [ir.Constant(kind, None), emitter.number(0)], body)
        emitter.store(emitter.sum_lanes(total), out)
        emitter.store(emitter.to_float(emitter.builder.trunc(emitter.splat(rounds, 2), ir.VectorType(I32, 2))), out, 4)

    piece = Piece(goal, 3, emit)
    x = np.arange(8 * goal.lanes, dtype=np.float32)
    out = np.empty(3, np.float32)
    for rounds in (0, 1, 2, 7):
        for stop in (rounds * goal.lanes, rounds * goal.lanes - goal.lanes + 1):
            piece(x, stop, out)
            assert out.tolist()[:2] == [2 * x[: rounds * goal.lanes].sum(), rounds]
