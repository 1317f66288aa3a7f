"""Ranges of least cost on a histogram, against the cost on all the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed_data import pieces, samples

from llmq.observers import MSE, OBSERVERS, Entropy, HistogramObserver, MinMax, scale_and_zero_point
from llmq.observers.search import thresholds
from llmq.spec import QuantSpec
from llmq_kernels.clipping import Candidates, divergences_reference

SPECS = [
    QuantSpec(bits=bits, symmetric=symmetric, range=range_)
    for bits in (1, 2, 4, 8)
    for symmetric, range_ in ((True, "full"), (True, "narrow"), (False, "full"))
    if range_ == "full" or bits > 1
]


def observed(kind: type[HistogramObserver], x: np.ndarray, seed: int, spec: QuantSpec) -> HistogramObserver:
    observer = kind(spec)
    for piece in pieces(x, seed):
        observer.observe(piece)
    return observer


def grids(low: np.ndarray, high: np.ndarray, spec: QuantSpec) -> Candidates:
    scale, zero_point = scale_and_zero_point(low, high, spec)
    middle = 0.5 if spec.bits == 1 else 2.0 ** (spec.bits - 1)
    points = np.full(scale.shape, middle) if zero_point is None else zero_point.astype(np.float64)
    return Candidates(scale.astype(np.float64), points, int(spec.range == "narrow"), 2**spec.bits - 1)


def exact_rms(x: np.ndarray, low: np.ndarray, high: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """Root of the mean squared error of the values themselves, in float64, for ranges (n,)."""
    grid = grids(low, high, spec)
    found = []
    for scale, zero_point in zip(grid.scale, grid.zero_point, strict=True):
        values = scale * (np.arange(grid.lowest, grid.highest + 1) - zero_point)
        after = np.clip(np.searchsorted(values, x.astype(np.float64)), 1, values.size - 1)
        found.append(np.minimum(np.abs(values[after] - x), np.abs(values[after - 1] - x)))
    return np.sqrt((np.array(found) ** 2).mean(axis=1))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=12, deadline=None)
@given(x=samples, seed=st.integers(0, 1000))
def test_mse_is_less_than_a_bin_above_the_best(spec: QuantSpec, x: np.ndarray, seed: int) -> None:
    observer = observed(MSE, x, seed, spec)
    assert observer.histogram is not None
    chosen = exact_rms(x, *(np.atleast_1d(end) for end in observer.range()), spec)
    low, high = thresholds(np.array([x.min()]), np.array([x.max()]))
    best = exact_rms(x, low[0], high[0], spec).min()
    assert chosen <= (best + observer.histogram.width) * (1 + 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("factor", [1, 5, 20])
def test_mse_is_close_to_the_best_of_a_fine_search(bits: int, factor: int) -> None:
    """Thresholds are 4 % apart, and the least error is flat: neither they nor bins cost more than 3 % of it."""
    rng = np.random.default_rng(bits)
    x = rng.standard_normal(20_000).astype(np.float32)
    x[:10] *= factor
    spec = QuantSpec(bits=bits, symmetric=True)
    most = np.abs(x).max() * np.linspace(0.01, 1.0, 400)
    chosen = exact_rms(x, *(np.atleast_1d(end) for end in observed(MSE, x, 0, spec).range()), spec)
    assert chosen <= exact_rms(x, -most, most, spec).min() * 1.03


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=10, deadline=None)
@given(x=samples, seed=st.integers(0, 1000))
def test_entropy_is_that_of_the_histogram_of_all_the_data(spec: QuantSpec, x: np.ndarray, seed: int) -> None:
    observer = observed(Entropy, x, seed, spec)
    assert observer.histogram is not None
    width = observer.histogram.width[0]
    place, counts = np.unique(np.floor(x.astype(np.float64) / width), return_counts=True)
    if (place != 0).any():
        place, counts = place[place != 0], counts[place != 0]
    centres = (place + 0.5) * width

    def cost(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        grid = grids(low[None], high[None], spec)
        return divergences_reference(counts[None], centres[None], grid)[0]

    low, high = (ends[0] for ends in thresholds(np.array([x.min()]), np.array([x.max()])))
    scale, zero_point, lowest, highest = grids(low[None], high[None], spec)
    codes = np.rint(centres / scale[0][:, None] + zero_point[0][:, None])
    kept = ((codes >= lowest) & (codes <= highest)).sum(axis=1)
    able = np.flatnonzero((scale[0] >= width) & (kept >= 2**spec.bits))
    best = cost(low[[0, *able]], high[[0, *able]]).min()
    chosen = cost(*(np.atleast_1d(end) for end in observer.range()))
    assert chosen == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_entropy_keeps_levels_that_are_few() -> None:
    """Of seventeen levels a cut to one would lose no information about that one."""
    x = np.random.default_rng(0).integers(0, 17, 10_000) / 16
    low, high = observed(Entropy, x.astype(np.float32), 0, QuantSpec(bits=4, symmetric=False)).range()
    assert (low, high) == (0, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_is_not_led_astray_by_zeros(bits: int) -> None:
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    spec = QuantSpec(bits=bits, symmetric=False)
    alone, rectified = (observed(Entropy, part, 0, spec).range()[1] for part in (x[x > 0], np.maximum(x, 0)))
    assert rectified == alone


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outliers_are_left_out(name: str, symmetric: bool) -> None:
    """Two values in 40 000, fifty times as large as the rest, cost min-max most of its codes."""
    x = np.random.default_rng(1).uniform(-1, 1, 40_000).astype(np.float32)
    x[:2] = 50.0
    spec = QuantSpec(bits=4, symmetric=symmetric)
    errors = []
    for kind in (OBSERVERS[name], MinMax):
        observer = kind(spec)
        observer.observe(x)
        errors.append(exact_rms(x[2:], *(np.atleast_1d(end) for end in observer.range()), spec).item())
    assert errors[0] < errors[1] / 4


def test_channels_choose_for_themselves() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_cauchy((5, 2000)).astype(np.float32) * np.array([[1e-3], [1], [10], [0], [1e4]], np.float32)
    for kind in OBSERVERS.values():
        together = kind(QuantSpec(bits=4, symmetric=False), channel_axis=0)
        together.observe(x)
        for i, row in enumerate(x):
            alone = kind(QuantSpec(bits=4, symmetric=False))
            alone.observe(row)
            assert [end[i] for end in together.range()] == list(alone.range())


def test_entropy_needs_two_bins_a_code() -> None:
    with pytest.raises(ValueError, match="8 bits need at least 512 bins, not 511"):
        Entropy(QuantSpec(bits=8), bins=511)
