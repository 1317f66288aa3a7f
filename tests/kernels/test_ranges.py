import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.layout import SCALE_KINDS, Grid
from llmq_kernels.ranges import divisor, range_reference, range_scales

KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
LIMITS = {"float16": (2.0**-24, 65504.0), "bfloat16": (2.0**-126, float.fromhex("0x1.fep127"))}


def rounded(value, kind, steps):
    """NumPy twin of `floats.round_scale`, for positive scales."""
    smallest, largest = LIMITS.get(kind, (2.0**-126, float(np.finfo(np.float32).max)))
    if kind != "float16":
        largest = np.float32(largest / steps)
        with np.errstate(over="ignore"):
            largest = largest if np.isfinite(largest * np.float32(steps)) else np.nextafter(largest, np.float32(0))
    return np.float32(np.float32(min(max(value, smallest), float(largest))).astype(KINDS[kind]))


@settings(max_examples=60)
@given(
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 5),
    symmetric=st.booleans(),
    narrow=st.booleans(),
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_textbook(special_weight, bits, group_size, n_groups, symmetric, narrow, kind, seed):
    narrow = narrow and symmetric and bits > 1
    weight = special_weight(3, group_size * n_groups, group_size, seed)
    grid = Grid(bits, group_size, symmetric=symmetric, narrow=narrow, scale_kind=SCALE_KINDS[kind])
    scale, zero_point = range_scales(weight, grid)
    found = scale.view(KINDS[kind]).astype(np.float32)
    assert (zero_point is None) == symmetric
    for i, group in enumerate(weight.astype(np.float64).reshape(-1, group_size)):
        exact = range_reference(group, bits, symmetric, narrow)[0]
        steps = np.ceil(divisor(bits, narrow))
        if zero_point is not None:
            zero = np.rint(np.float32(-min(group.min(), 0.0)) / rounded(exact, kind, 1))
            zero = min(max(zero, 0), 2**bits - 1)
            assert zero_point.flat[i] == zero
            steps = max(zero, 2**bits - 1 - zero)
        assert found.flat[i] == rounded(exact, kind, steps)


def test_textbook_numbers():
    weight = np.array([[-7.0, 3.5, 0.0, 1.0], [1.0, 2.0, 3.0, 15.0]], np.float32)
    scale, _ = range_scales(weight, Grid(4, 4, narrow=True))
    assert scale.view(np.float32).ravel().tolist() == [1.0, np.float32(15 / 7)]
    scale, _ = range_scales(weight, Grid(4, 4))
    assert scale.view(np.float32).ravel().tolist() == [np.float32(7 / 7.5), 2.0]
    scale, zero_point = range_scales(weight, Grid(4, 4, symmetric=False))
    assert scale.view(np.float32).ravel().tolist() == [np.float32(0.7), 1.0]
    assert zero_point.ravel().tolist() == [10, 0]
    scale, _ = range_scales(weight, Grid(1, 4))
    assert scale.view(np.float32).ravel().tolist() == [14.0, 30.0]


def test_a_range_wider_than_float32_does_not_overflow():
    weight = np.array([[-3.0e38, 3.0e38]], np.float32)
    scale, zero_point = range_scales(weight, Grid(8, 2, symmetric=False))
    assert scale.view(np.float32).item() == pytest.approx(6.0e38 / 255)
    assert zero_point.item() == 128


def test_threads_change_no_byte(special_weight, each_thread_count):
    weight = special_weight(64, 128, 32)
    each_thread_count(lambda: [range_scales(weight, Grid(4, 32))[0].tobytes()])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(9, 4), "bits must be 1 to 8"),
        (Grid(4, 3), "does not divide"),
        (Grid(4, 0), "does not divide"),
        (Grid(4, 4, scale_kind=7), "scale kind"),
        (Grid(1, 4, narrow=True), "narrow"),
        (Grid(4, 4, symmetric=False, narrow=True), "narrow"),
    ],
)
def test_mistakes(grid, message):
    with pytest.raises(ValueError, match=message):
        range_scales(np.zeros((2, 8), np.float32), grid)
