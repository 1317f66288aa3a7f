import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix, midpoint
from llmq_kernels.pack import pack_reference, unpack
from llmq_kernels.quantize import (
    codes_reference,
    dequantize,
    dequantize_reference,
    quantize,
    quantize_to_range,
    scales_reference,
)
from llmq_kernels.ranges import range_scales
from llmq_kernels.search import search_scales


def spread(matrix):
    """Scales and zero points of a matrix, float32, one for each element."""
    scale = scales_reference(matrix)
    zero = np.float32(midpoint(matrix.bits)) if matrix.zero_point is None else matrix.zero_point.astype(np.float32)
    zero = np.broadcast_to(zero, scale.shape)
    return np.repeat(scale, matrix.group_size, axis=1), np.repeat(zero, matrix.group_size, axis=1)


@settings(max_examples=80)
@given(
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 5),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(special_weight, bits, group_size, n_groups, symmetric, narrow, kind, seed):
    narrow = narrow and symmetric and bits > 1
    columns = group_size * n_groups
    weight = special_weight(3, columns, group_size, seed)
    grid = Grid(bits, group_size, symmetric=symmetric, narrow=narrow, scale_kind=SCALE_KINDS[kind])
    scale, zero_point = range_scales(weight, grid)
    if seed % 2:  # scales of either sign, too small for the weight
        scale.reshape(3, n_groups, -1)[:, :, -1] ^= 0x8000
    matrix = quantize(weight, grid, scale, zero_point)
    scales, zeros = spread(matrix)
    codes = codes_reference(weight, scales, zeros, bits, narrow)
    np.testing.assert_array_equal(matrix.packed, pack_reference(codes, bits))
    np.testing.assert_array_equal(unpack(matrix.packed, bits, columns), codes)
    np.testing.assert_array_equal(dequantize(matrix), dequantize_reference(matrix))


@settings(max_examples=60)
@given(
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.sampled_from([1, 2, 5, 40]),
    symmetric=st.booleans(),
    source=st.sampled_from(["float16", "bfloat16", "float32"]),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_source_equals_the_reference_in_one_pass_and_in_two(
    special_weight, bits, group_size, n_groups, symmetric, source, kind, seed
):
    weight = special_weight(6, group_size * n_groups, group_size, seed)
    with np.errstate(over="ignore"):
        weight = np.nan_to_num(weight.astype(source).astype(np.float32), posinf=6e4, neginf=-6e4).astype(source)
    grid = Grid(bits, group_size, symmetric=symmetric, scale_kind=SCALE_KINDS[kind])
    scale, zero_point = range_scales(weight, grid)
    scale.flags.writeable = False
    matrix = quantize(weight, grid, scale, zero_point)
    once = quantize_to_range(weight, grid)
    np.testing.assert_array_equal(once.packed, matrix.packed)
    np.testing.assert_array_equal(once.scale, scale)
    assert symmetric or (once.zero_point == zero_point).all()
    codes = codes_reference(weight.astype(np.float32), *spread(matrix), bits, False)
    np.testing.assert_array_equal(matrix.packed, pack_reference(codes, bits))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(value):
    for symmetric in (True, False):
        weight = np.ones((5, 32), np.float16)
        weight[4, 17] = value
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            quantize_to_range(weight, Grid(4, 16, symmetric=symmetric))


def test_no_rows():
    matrix = quantize_to_range(np.empty((0, 32), np.float32), Grid(4, 16))
    assert matrix.packed.shape == (0, 16)
    assert quantize(np.empty((0, 32), np.float32), Grid(4, 16), matrix.scale, None).packed.shape == (0, 16)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_value_is_off_by_more_than_half_a_step(bits, symmetric):
    weight = np.random.default_rng(bits).standard_normal((8, 128)).astype(np.float32)
    grid = Grid(bits, 32, symmetric=symmetric)
    matrix = quantize(weight, grid, *range_scales(weight, grid))
    step, _ = spread(matrix)
    # The zero point of an asymmetric grid is rounded as well: half a step more at the ends.
    assert (np.abs(dequantize(matrix) - weight) <= step * (0.5001 if symmetric else 1.0001)).all()


def test_the_sign_grid():
    weight = np.array([[3.0, -1.0, 0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0]], np.float32)
    grid = Grid(1, 8)
    scale = np.array([[4.0]], np.float32).view(np.uint16)
    matrix = quantize(weight, grid, scale, None)
    assert matrix.packed.tobytes() == bytes([0b01010001, 0, 0, 0])
    assert dequantize(matrix).tolist() == [[2.0, -2.0, -2.0, -2.0, 2.0, -2.0, 2.0, -2.0]]


def test_all_zero_groups_stay_zero():
    weight = np.zeros((2, 64), np.float32)
    for grid in (Grid(4, 32), Grid(2, 32, narrow=True), Grid(8, 32, symmetric=False)):
        assert not dequantize(quantize(weight, grid, *range_scales(weight, grid))).any()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("variant", ["full", "narrow", "asymmetric"])
@pytest.mark.parametrize("kind", SCALE_KINDS)
def test_every_code_of_a_huge_group_is_finite(bits, variant, kind):
    largest = np.finfo(np.float32).max
    weight = np.array([[-1, 0], [1, 0], [-1, 1], [1, 1], [-0.9, 1], [-0.3, 1], [-1, 0.2]], np.float32) * largest
    narrow = variant == "narrow" and bits > 1
    grid = Grid(bits, 2, symmetric=variant != "asymmetric", narrow=narrow, scale_kind=SCALE_KINDS[kind])
    for choose in (range_scales, search_scales):
        matrix = quantize(weight, grid, *choose(weight, grid))
        ends = np.broadcast_to(np.array([narrow, 2**bits - 1], np.uint8), weight.shape)
        packed = pack_reference(ends, bits)
        extremes = PackedMatrix(packed, matrix.scale, matrix.zero_point, bits, 2, 2, grid.scale_kind)
        assert np.isfinite(dequantize(extremes)).all()
        if kind == "float32" and bits > 2:
            assert (np.abs(dequantize(matrix) / largest - weight / largest) <= 2.0 ** (1 - bits) * 1.01).all()


def test_rows_are_independent_and_threads_change_no_byte(special_weight, each_thread_count):
    weight = special_weight(50, 96, 32)
    grid = Grid(3, 32)
    scale, _ = range_scales(weight, grid)
    whole = quantize(weight, grid, scale, None).packed
    np.testing.assert_array_equal(quantize(weight[10:20], grid, scale[10:20], None).packed, whole[10:20])

    def work():
        matrix = quantize(weight, grid, scale, None)
        return [matrix.packed.tobytes(), dequantize(matrix).tobytes()]

    each_thread_count(work)


def test_reads_any_layout_of_a_weight():
    weight = np.random.default_rng(0).standard_normal((16, 64))
    grid = Grid(4, 16)
    scale, _ = range_scales(weight.astype(np.float32), grid)
    expected = quantize(weight.astype(np.float32), grid, scale, None).packed
    single = weight.astype(np.float32)
    readonly = single.copy()
    readonly.flags.writeable = False
    for same in (weight, np.asfortranarray(single), readonly, np.repeat(single, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(quantize(same, grid, scale, None).packed, expected)


def test_mistakes():
    weight, grid = np.zeros((2, 64), np.float32), Grid(4, 32)
    scale, _ = range_scales(weight, grid)
    with pytest.raises(ValueError, match="zero points"):
        quantize(weight, grid, scale, np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="scale must have shape"):
        quantize(weight, grid, scale[:, :2], None)
    with pytest.raises(TypeError, match="weight must be float32"):
        quantize(weight.astype(np.complex64), grid, scale, None)
    with pytest.raises(ValueError, match="shape"):
        quantize(weight[0], grid, scale, None)


def test_a_matrix_checks_itself():
    packed, scale = np.zeros((2, 32), np.uint8), np.zeros((2, 2), np.uint16)
    good = PackedMatrix(packed, scale, None, 4, 32, 64, SCALE_KINDS["float16"])
    assert (good.rows, good.n_groups) == (2, 2)
    assert not good.packed_view.flags.writeable
    assert good.zero_point_view.shape == (0, 0)
    assert packed.flags.writeable
    with pytest.raises(ValueError, match="bits"):
        PackedMatrix(packed, scale, None, 0, 32, 64, 0)
    with pytest.raises(ValueError, match="does not divide"):
        PackedMatrix(packed, scale, None, 4, 33, 64, 0)
    with pytest.raises(ValueError, match="scale kind"):
        PackedMatrix(packed, scale, None, 4, 32, 64, 3)
    with pytest.raises(TypeError, match="packed must be uint8"):
        PackedMatrix(packed.view(np.int8), scale, None, 4, 32, 64, 0)
    with pytest.raises(ValueError, match="zero_point must have shape"):
        PackedMatrix(packed, scale, np.zeros((2, 3), np.uint8), 4, 32, 64, 0)
    with pytest.raises(ValueError, match="contiguous"):
        PackedMatrix(np.zeros((2, 64), np.uint8)[:, ::2], scale, None, 4, 32, 64, 0)
