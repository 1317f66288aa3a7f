import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.half_quadratic import half_quadratic_reference, half_quadratic_scales
from llmq_kernels.layout import SCALE_KINDS, Grid, midpoint
from llmq_kernels.quantize import dequantize, quantize, scales_reference
from llmq_kernels.ranges import range_scales


@settings(max_examples=40)
@given(
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_scales_are_those_of_the_reference(bits, symmetric, narrow, kind, seed):
    weight = np.random.default_rng(seed).standard_t(4, (3, 96)).astype(np.float32)
    grid = Grid(bits, 32, symmetric=symmetric, narrow=narrow and symmetric and bits > 1, scale_kind=SCALE_KINDS[kind])
    start, found = range_scales(weight, grid), half_quadratic_scales(weight, grid)
    scales = [scales_reference(quantize(weight, grid, *pair)).reshape(-1).astype(np.float64) for pair in (start, found)]
    middle = np.full(9, midpoint(bits))
    zeros = [middle if pair[1] is None else pair[1].reshape(-1).astype(np.float64) for pair in (start, found)]
    for i, group in enumerate(weight.reshape(-1, 32).astype(np.float64)):
        expected = half_quadratic_reference(group, grid, (scales[0][i], zeros[0][i]))
        assert (scales[1][i], zeros[1][i]) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_never_worse_than_rounding_to_nearest_in_its_own_measure(symmetric, bits):
    weight = np.random.default_rng(bits).standard_t(4, (16, 256)).astype(np.float32)
    grid = Grid(bits, 64, symmetric=symmetric)
    losses = []
    for scales in (range_scales(weight, grid), half_quadratic_scales(weight, grid)):
        off = np.abs(weight.astype(np.float64) - dequantize(quantize(weight, grid, *scales)))
        losses.append((off**0.75).reshape(-1, 64).sum(axis=1))
    assert (losses[1] <= losses[0] * (1 + 1e-6)).all()
    assert losses[1].sum() < 0.97 * losses[0].sum()


def test_one_outlier_is_given_up():
    weight = np.linspace(-1, 1, 64, dtype=np.float32)[None].copy()
    weight[0, 0] = 3.0
    scale, _ = half_quadratic_scales(weight, Grid(3, 64))
    assert scale.view(np.float32).item() < 0.9 * range_scales(weight, Grid(3, 64))[0].view(np.float32).item()


def test_zeros_and_the_largest_floats():
    largest = np.finfo(np.float32).max
    weight = np.array([[0.0] * 4, [largest, -largest, largest / 2, 0.0], [2.0**-149, 0.0, 0.0, 0.0]], np.float32)
    for grid in (Grid(4, 4), Grid(2, 4, symmetric=False), Grid(1, 4)):
        scale, _ = half_quadratic_scales(weight, grid)
        assert np.isfinite(scale.view(np.float32)).all()
        assert (scale.view(np.float32) > 0).all()


def test_threads_change_no_byte(each_thread_count):
    weight = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    for grid in (Grid(4, 32), Grid(2, 32, symmetric=False)):
        each_thread_count(lambda grid=grid: [a.tobytes() for a in half_quadratic_scales(weight, grid) if a is not None])


def test_nan_is_refused():
    with pytest.raises(FloatingPointError):
        half_quadratic_scales(np.full((1, 4), np.nan, np.float32), Grid(4, 4))
