import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels import matmul as module
from llmq_kernels.layout import SCALE_KINDS, Grid
from llmq_kernels.matmul import matmul, matmul_reference
from llmq_kernels.quantize import dequantize, quantize
from llmq_kernels.ranges import range_scales


def random_matrix(rng, rows, columns, grid):
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    scale, zero_point = range_scales(weight, grid)
    words = scale.reshape(rows, columns // grid.group_size, 2 if grid.scale_kind == SCALE_KINDS["float32"] else 1)
    words[::2, :, -1] ^= 0x8000  # scales of either sign
    return quantize(weight, grid, scale, zero_point)


def bound(x, weight):
    """What summing in float32 may cost: a few units in the last place of the sum of magnitudes."""
    return 1e-5 * np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T + 1e-30


@settings(max_examples=80)
@given(
    tokens=st.integers(0, 9),
    rows=st.integers(0, 40),
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 12),
    symmetric=st.booleans(),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, rows, bits, group_size, n_groups, symmetric, kind, seed):
    rng = np.random.default_rng(seed)
    columns = group_size * n_groups
    matrix = random_matrix(
        rng, rows, columns, Grid(bits, group_size, symmetric=symmetric, scale_kind=SCALE_KINDS[kind])
    )
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    weight = dequantize(matrix).astype(np.float64)
    for compute in ("float32", "int8"):
        off = np.abs(matmul(x, matrix, compute=compute) - matmul_reference(x, matrix, compute))
        assert (off <= bound(x, weight) * 1.1).all()


@pytest.mark.parametrize("columns", [512, 520, 1024, 1544, 2056])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rows_longer_than_a_tile(columns, bits):
    rng = np.random.default_rng(columns)
    matrix = random_matrix(rng, 33, columns, Grid(bits, columns))
    x = rng.standard_normal((6, columns)).astype(np.float32)
    weight = dequantize(matrix).astype(np.float64)
    assert (np.abs(matmul(x, matrix, compute="float32") - x @ weight.T) <= bound(x, weight)).all()
    step = np.abs(x).max() / 127
    limit = step / 2 * np.abs(weight).sum(axis=1) + bound(x, weight)
    assert (np.abs(matmul(x, matrix) - x @ weight.T) <= limit).all()


def test_integers_are_exact():
    rng = np.random.default_rng(0)
    weight = rng.integers(-8, 8, (20, 128)).astype(np.float32)
    grid = Grid(4, 32)
    matrix = quantize(weight, grid, np.full((20, 4), 1.0, np.float32).view(np.uint16), None)
    x = rng.integers(-127, 128, (5, 128)).astype(np.float32)
    x[:, ::32] = 127
    for compute in ("int8", "float32"):
        np.testing.assert_array_equal(matmul(x, matrix, compute=compute), x @ weight.T)


def test_the_largest_products_of_a_long_group():
    weight = np.full((1, 16381), 255.0, np.float32)  # a prime: the group is taken whole
    grid = Grid(8, 16381, symmetric=False)
    matrix = quantize(weight, grid, *range_scales(weight, grid))
    x = np.full((1, 16381), -127.0, np.float32)
    assert matmul(x, matrix).item() == pytest.approx(-127.0 * 255.0 * 16381, rel=1e-6)


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_nan_and_infinity_stay_in_their_row(compute):
    matrix = random_matrix(np.random.default_rng(0), 8, 64, Grid(4, 32))
    x = np.ones((6, 64), np.float32)
    x[1, 40], x[4, 3] = np.nan, np.inf
    found = matmul(x, matrix, compute=compute)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, True, True, False, True]
    assert not np.isfinite(found[[1, 4]]).any()


@pytest.mark.parametrize("compute", ["int8", "float32"])
def test_one_thread_or_all_change_no_byte(compute, each_thread_count, monkeypatch):
    rng = np.random.default_rng(0)
    matrix = random_matrix(rng, 100, 256, Grid(4, 64))
    x = rng.standard_normal((7, 256)).astype(np.float32)
    alone = matmul(x, matrix, compute=compute)
    monkeypatch.setattr(module, "_PARALLEL", 0)
    np.testing.assert_array_equal(matmul(x, matrix, compute=compute), alone)
    each_thread_count(lambda: [matmul(x, matrix, compute=compute).tobytes()])


def test_writes_where_it_is_told_and_reads_any_layout():
    rng = np.random.default_rng(0)
    matrix = random_matrix(rng, 20, 64, Grid(4, 32))
    x = rng.standard_normal((6, 64)).astype(np.float32)
    out = np.full((6, 20), np.nan, np.float32)
    for compute in ("int8", "float32"):
        assert matmul(x, matrix, compute=compute, out=out) is out
        np.testing.assert_array_equal(out, matmul(np.asfortranarray(x), matrix, compute=compute))


def test_mistakes():
    matrix = random_matrix(np.random.default_rng(0), 4, 64, Grid(4, 32))
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="shape"):
        matmul(x[:, :32], matrix)
    with pytest.raises(ValueError, match="compute"):
        matmul(x, matrix, compute="int4")
    for out in (np.zeros((2, 5), np.float32), np.zeros((2, 4)), np.zeros((4, 2), np.float32).T):
        with pytest.raises(ValueError, match="out must be"):
            matmul(x, matrix, out=out)
