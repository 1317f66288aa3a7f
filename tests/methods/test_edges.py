"""What becomes of groups at the edges of their dtypes: every 16-bit float, in every kind of odd group."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from edge_groups import SOURCES, Result, families, finite_values, rows_of

from llmq.methods import METHODS, quantize_tensor
from llmq.observers import InputMoments
from llmq_kernels import jit
from llmq_kernels.equal_groups import count_equal_groups
from llmq_kernels.search_weights import weights_reference

SIZE = 5  # ends in the tail of every vector
GRIDS = {"full": {}, "narrow": {"range": "narrow"}, "asymmetric": {"symmetric": False}}
ALONE = [name for name, method in METHODS.items() if method.needs != "block"]


def moments(columns, seed=0):
    found = InputMoments(columns, whole=True)
    found.add(np.random.default_rng(seed).standard_normal((2 * columns, columns)).astype(np.float32))
    return found.statistics()


def quantized(rows, method, bits, grid, scale_dtype=None, size=SIZE):
    statistics = moments(rows.shape[1]) if METHODS[method].needs != "nothing" else None
    q = quantize_tensor(rows, bits, size, method=method, statistics=statistics, scale_dtype=scale_dtype, **GRIDS[grid])
    found = Result.of(rows, q)
    found.check_stored()
    return found


@pytest.mark.parametrize("method", [name for name in ALONE if METHODS[name].needs == "nothing"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_equal_numbers_have_equal_codes(method, bits):
    """What counting groups of one number by their codes rests on."""
    rng = np.random.default_rng(bits)
    values = np.repeat([0.0, 1.0, -1.0, 2.0**-20, -65000.0, 3e-8], 8)
    rows = np.repeat(values, 32).reshape(-1, 32)
    rows[:8] = np.where(rng.random((8, 32)) < 0.5, 0.0, -0.0)
    for dtype, grid in itertools.product((np.float16, ml_dtypes.bfloat16, np.float32), GRIDS):
        if bits == 1 and grid == "narrow":
            continue
        weight = rows.astype(dtype)
        q = quantize_tensor(weight, bits, 32, method=method, **GRIDS[grid])
        counts = count_equal_groups(weight, 32)
        assert count_equal_groups(weight, 32, q.packed, bits) == counts
        assert counts[0] >= 8


SOME = [(4, 1), (8, 3), (2, 3), (1, 3)]
"""Bits, and of how many families one is tried; all of them by the slow tests."""


@pytest.mark.parametrize(
    ("bits", "step"), [*SOME, *(pytest.param(bits, 1, marks=pytest.mark.slow) for bits in (1, 2, 3, 5, 6, 7, 8))]
)
@pytest.mark.parametrize("source", SOURCES)
def test_every_value_is_within_half_a_step(source, bits, step):
    for (_, rows), grid in itertools.product(itertools.islice(families(source, SIZE), 0, None, step), GRIDS):
        if bits > 1 or grid != "narrow":
            found = quantized(rows, "rtn", bits, grid)
            assert (found.error <= found.limit()).all()


@pytest.mark.parametrize("scale_dtype", SOURCES)
def test_scales_of_another_dtype_clip_what_they_cannot_reach(scale_dtype):
    source = next(name for name in SOURCES if name != scale_dtype)
    for _, rows in itertools.islice(families(source, SIZE), 0, None, 3):
        for bits, grid in ((4, "full"), (2, "asymmetric")):
            found = quantized(rows, "rtn", bits, grid, scale_dtype)
            assert (found.error <= found.limit()).all()


def losses(found, method, bits):
    """What a method minimizes, for each group, float64."""
    if method == "hqq":
        return (found.error**0.75).sum(axis=1)
    with np.errstate(over="ignore"):
        weights = np.stack([weights_reference(x, bits) for x in found.x]) if bits in (2, 3) else 1.0
    return (weights * found.error**2).sum(axis=1)


@pytest.mark.parametrize("method", ["mse", "hqq"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_search_loses_no_more_than_rounding(source, method):
    chosen = itertools.islice(families(source, SIZE), 0, None, 10 if method == "hqq" else 2)  # hqq takes its time
    for (_, rows), grid, bits in itertools.product(chosen, GRIDS, (4,)):
        found, nearest = quantized(rows, method, bits, grid), quantized(rows, "rtn", bits, grid)
        whole = losses(Result(found.x, 0 * found.x, found.scale, found.zero_point, found.q), method, bits)
        assert (losses(found, method, bits) <= losses(nearest, method, bits) * 1.0001 + whole * 1e-5 * 4.0**-bits).all()


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("method", ["mse", "hqq"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.slow
def test_a_search_of_any_width_keeps_to_what_can_be_stored(source, method, bits):
    for (_, rows), grid in itertools.product(families(source, SIZE), GRIDS):
        quantized(rows, method, bits, grid)


def some(source, columns, count=400):
    """A sample of every family, in rows of some columns."""
    for name, rows in families(source, SIZE):
        groups = rows.reshape(-1, SIZE)
        groups = groups[:: max(1, len(groups) // count)]
        per_row = columns // SIZE
        yield name, groups[: len(groups) // per_row * per_row].reshape(-1, columns)


@pytest.mark.parametrize("method", [name for name in ALONE if name not in ("rtn", "mse", "hqq")])
@pytest.mark.parametrize("source", SOURCES)
def test_every_method_stores_what_can_be_read(source, method):
    count = 40 if method == "entropy" else 200
    for number, (_, rows) in enumerate(some(source, 20, count)):
        bits, grid = (8, 4, 2)[number % 3], tuple(GRIDS)[number // 3 % 3]
        quantized(rows, method, bits, grid)
    if method in ("imatrix", "gptq", "percentile"):
        quantized(next(some(source, 20))[1], method, 1, "full")


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ALONE)
def test_nan_and_infinity_are_found_at_every_place(method, value):
    rows = np.ones((2, 20), np.float32)
    statistics = moments(20)
    for dtype, place in itertools.product((np.float16, ml_dtypes.bfloat16, np.float32, np.float64), range(40)):
        if dtype in (np.float16, np.float64) and place % 7:
            continue
        weight = rows.astype(dtype)
        weight.flat[place] = value
        for grid in ("full", "asymmetric"):
            with pytest.raises(ValueError, match="NaN or infinity"):
                quantize_tensor(weight, 4, SIZE, method=method, statistics=statistics, **GRIDS[grid])


def test_every_nan_of_sixteen_bits_is_found():
    for dtype in SOURCES.values():
        values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        for value in values[~np.isfinite(values.astype(np.float32))][::61]:
            weight = np.ones((1, 8), dtype)
            weight[0, 6] = value
            with pytest.raises(ValueError, match="NaN or infinity"):
                quantize_tensor(weight, 4, 8, method="rtn")


def test_a_float64_beyond_float32_is_refused_like_infinity():
    weight = np.ones((2, 8))
    weight[1, 3] = 1e300
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_tensor(weight, 4, 8)
    assert not quantize_tensor(np.full((2, 8), 1e-300), 4, 8).dequantize().any()


@pytest.mark.parametrize("method", ALONE)
def test_zeros_stay_zeros(method):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        for grid, bits in itertools.product(GRIDS, (8, 4, 2)):
            weight = np.zeros((3, 20), dtype)
            weight[1, 10:] = [1.0, -1.0] * 5
            weight[0, ::2] = -0.0
            statistics = moments(20)
            q = quantize_tensor(weight, bits, SIZE, method=method, statistics=statistics, **GRIDS[grid])
            assert not q.dequantize()[[0, 2]].any() or method == "gptq"  # its zeros may make up for others' errors


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq", "imatrix"])
def test_threads_change_no_byte(method):
    most = jit.threads()
    rows = rows_of(np.repeat(finite_values("bfloat16")[:6400, None], SIZE, axis=1))
    rows[:, ::7] = 0
    statistics = moments(rows.shape[1]) if method == "imatrix" else None
    found = set()
    try:
        for threads in sorted({1, 2, most} & {*range(1, most + 1)}):
            jit.set_threads(threads)
            q = quantize_tensor(rows, 4, SIZE, method=method, statistics=statistics, symmetric=False)
            found.add((q.packed.tobytes(), q.scale.tobytes(), q.zero_point.tobytes()))
    finally:
        jit.set_threads(most)
    assert len(found) == 1
