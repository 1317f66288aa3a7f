import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.candidates import candidates
from llmq_kernels.layout import SCALE_KINDS, Grid
from llmq_kernels.quantize import dequantize, quantize
from llmq_kernels.ranges import range_scales
from llmq_kernels.search import search_reference, search_scales
from llmq_kernels.search_weights import weights_reference

KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def weights_of(weight, grid, energy=None):
    """What the errors of each group's elements weigh, float64 (groups, group_size)."""
    groups = weight.reshape(-1, grid.group_size)
    rows = [None] * len(groups) if energy is None else np.tile(energy, weight.shape[0]).reshape(groups.shape)
    return np.stack([weights_reference(g, grid.bits, e) for g, e in zip(groups, rows, strict=True)])


def errors(weight, grid, scales, weights=1.0):
    """Weighted squared error of each group, float64, of weights in the usual range."""
    off = weight.astype(np.float64) - dequantize(quantize(weight, grid, *scales))
    return (weights * (off**2).reshape(-1, grid.group_size)).sum(axis=1)


@settings(max_examples=80)
@given(
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 40),
    symmetric=st.booleans(),
    variant=st.sampled_from(["signed", "positive", "narrow"]),
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_never_worse_than_rounding_to_nearest(
    special_weight, bits, group_size, n_groups, symmetric, variant, kind, seed
):
    weight = special_weight(1, group_size * n_groups, group_size, seed)
    weight = np.where(np.abs(weight) > 1e30, weight * np.float32(1e-8), weight)  # float32 cannot hold twice the largest
    narrow = variant == "narrow" and symmetric and bits > 1
    grid = Grid(
        bits, group_size, symmetric=symmetric, narrow=narrow, signed=variant == "signed", scale_kind=SCALE_KINDS[kind]
    )
    found = search_scales(weight, grid)
    scale = found[0].view(KINDS[kind]).astype(np.float32)
    assert np.isfinite(scale).all()
    assert (scale != 0).all()
    if not (variant == "signed" and symmetric):
        assert (scale > 0).all()
    weights = weights_of(weight, grid)
    tiny = 1e-4 * (weights * (weight.astype(np.float64) ** 2).reshape(-1, group_size)).sum(axis=1) * 4.0**-bits
    least = errors(weight, grid, range_scales(weight, grid), weights)
    assert (errors(weight, grid, found, weights) <= least * 1.00001 + tiny).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("variant", ["signed", "positive", "narrow", "asymmetric"])
def test_at_least_as_good_as_every_candidate(bits, kind, variant):
    weight = np.random.default_rng(bits).standard_t(4, (5, 13 * 32)).astype(np.float32)
    grid = Grid(
        bits,
        32,
        symmetric=variant != "asymmetric",
        narrow=variant == "narrow",
        signed=variant == "signed",
        scale_kind=SCALE_KINDS[kind],
    )
    found = errors(weight, grid, search_scales(weight, grid), weights_of(weight, grid))
    for error, group in zip(found, weight.astype(np.float64).reshape(-1, 32), strict=True):
        # A scale one unit in the last place away may win where a candidate lies between two stored scales.
        assert error <= search_reference(group, grid) * 1.001


@settings(max_examples=40)
@given(bits=st.integers(1, 8), symmetric=st.booleans(), rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_energies_choose_what_counts(bits, symmetric, rows, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(4, (rows, 96)).astype(np.float32)
    energy = rng.exponential(1.0, 96).astype(np.float32) ** 3
    grid = Grid(bits, 24, symmetric=symmetric, scale_kind=SCALE_KINDS["bfloat16"])
    weights = weights_of(weight, grid, energy)
    found = errors(weight, grid, search_scales(weight, grid, energy), weights)
    free = errors(weight, grid, search_scales(weight, grid), weights)
    assert found.sum() <= free.sum() * 1.0001
    for error, group, weighed in zip(found, weight.reshape(-1, 24), weights, strict=True):
        if bits > 1 or not symmetric:
            assert error <= search_reference(group.astype(np.float64), grid, weighed) * 1.001


def test_columns_that_meet_nothing_leave_the_scale_to_the_others():
    weight = np.array([[1.5, 1.0, -1.0, 1.0], [1.0, -1.5, 1.0, 1.0]], np.float32)
    scale, _ = search_scales(weight, Grid(2, 4), np.array([0.0, 1.0, 1.0, 1.0], np.float32))
    assert np.abs(scale.view(np.float32)[0]) == pytest.approx(1.0)
    scale, _ = search_scales(weight, Grid(4, 4), np.zeros(4, np.float32))
    rounded, _ = range_scales(weight, Grid(4, 4))
    assert np.array_equal(scale, rounded)


@pytest.mark.parametrize("wrong", [np.ones(3, np.float32), np.ones(4), np.array([1, 1, 1, -1], np.float32)])
def test_energies_that_do_not_fit(wrong):
    with pytest.raises(ValueError, match="energy must be"):
        search_scales(np.ones((2, 4), np.float32), Grid(4, 4), wrong)


def test_the_error_on_normal_weights_is_what_it_was():
    weight = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    total = float((weight.astype(np.float64) ** 2).sum())
    # At 2 and 3 bits the errors of large weights count more, at the price of some for all together.
    limits = {8: (4e-5, 4e-5), 4: (8.6e-3, 8.6e-3), 3: (3.3e-2, 2.6e-2), 2: (0.128, 0.107), 1: (0.37, 0.37)}
    for bits, (limit, weighted) in limits.items():
        grid = Grid(bits, 64, scale_kind=SCALE_KINDS["float16"])
        scales, weights = search_scales(weight, grid), weights_of(weight, grid)
        assert errors(weight, grid, scales).sum() / total < limit
        squares = (weights * weight.reshape(-1, 64).astype(np.float64) ** 2).sum()
        assert errors(weight, grid, scales, weights).sum() / squares < weighted


def test_the_spare_code_faces_the_longer_tail():
    up = np.array([[8.0, -7.0, 3.0, 1.0, -2.0, 5.0, -4.0, 0.0]], np.float32)
    for weight, sign in ((up, -1.0), (-up, 1.0)):
        scale, _ = search_scales(weight, Grid(4, 8))
        assert scale.view(np.float32).item() == sign
        positive, _ = search_scales(weight, Grid(4, 8, signed=False))
        assert positive.view(np.float32).item() > 0


def test_the_sign_grid_takes_the_mean():
    scale, _ = search_scales(np.array([[1.0, -2.0, 3.0, -6.0]], np.float32), Grid(1, 4))
    assert scale.view(np.float32).item() == 6.0


def test_groups_of_the_largest_and_smallest_floats():
    largest = np.finfo(np.float32).max
    rows = [[largest, -largest, largest / 2, 0.0], [2.0**-149, -(2.0**-149), 0.0, 0.0], [0.0, -0.0, 0.0, -0.0]]
    weight = np.array(rows, np.float32)
    for grid in (Grid(4, 4), Grid(8, 4, symmetric=False), Grid(1, 4), Grid(1, 4, symmetric=False), Grid(2, 4)):
        scale, _ = search_scales(weight, grid)
        assert np.isfinite(scale.view(np.float32)).all()
        assert (scale.view(np.float32) != 0).all()


def test_rows_are_independent_and_threads_change_no_byte(special_weight, each_thread_count):
    weight = special_weight(50, 96, 32)
    for grid in (Grid(4, 32), Grid(2, 32, symmetric=False)):
        whole, zeros = search_scales(weight, grid)
        part, part_zeros = search_scales(weight[7:20], grid)
        np.testing.assert_array_equal(part, whole[7:20])
        if zeros is not None:
            np.testing.assert_array_equal(part_zeros, zeros[7:20])
        each_thread_count(lambda grid=grid: [a.tobytes() for a in search_scales(weight, grid) if a is not None])


@pytest.mark.parametrize("bits", range(1, 9))
def test_candidates_are_few_and_cover_the_whole_range(bits):
    half = 2 ** (bits - 1)
    signed = candidates(Grid(bits, 64))
    assert signed.shape[0] <= 64
    assert not signed.flags.writeable
    assert -np.float32(1 / half) in signed
    assert (candidates(Grid(bits, 64, signed=False)) > 0).all()
    assert candidates(Grid(bits, 64, symmetric=False))[-1].tolist() == [1.0, 1.0]
