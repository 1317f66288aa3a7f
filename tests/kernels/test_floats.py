import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.floats import narrow, round_scale, scale_value, store_scale, widen
from llmq_kernels.layout import SCALE_KINDS

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
QUIET = {"float16": 0x0200, "bfloat16": 0x0040}
ALL_BITS = np.arange(65536, dtype=np.uint16)


def quiet(function):
    with np.errstate(all="ignore"):
        return function()


@pytest.mark.parametrize("kind", DTYPES)
def test_every_pattern_widens_exactly(kind):
    found = widen(ALL_BITS, kind)
    expected = quiet(lambda: ALL_BITS.view(DTYPES[kind]).astype(np.float32))
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
    assert np.isnan(found[~numbers]).all()
    assert (found[~numbers].view(np.uint32) & 0x00400000).all()


@pytest.mark.parametrize("kind", DTYPES)
def test_every_pattern_narrows_back(kind):
    found = narrow(widen(ALL_BITS, kind), kind)
    nan = np.isnan(widen(ALL_BITS, kind))
    np.testing.assert_array_equal(found, np.where(nan, ALL_BITS | QUIET[kind], ALL_BITS))


@pytest.mark.parametrize("kind", DTYPES)
def test_narrowing_rounds_half_to_even(kind):
    exact = widen(ALL_BITS[:0x7C00], kind).astype(np.float64)
    middle = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
    for x in (middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))):
        for signed in (x, -x):
            expected = quiet(lambda signed=signed: signed.astype(DTYPES[kind])).view(np.uint16)
            np.testing.assert_array_equal(narrow(signed, kind), expected)


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(sorted(DTYPES)))
def test_narrowing_any_float(seed, kind):
    x = np.random.default_rng(seed).integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32)
    expected = quiet(lambda: x.astype(DTYPES[kind])).view(np.uint16)
    np.testing.assert_array_equal(narrow(x, kind)[~np.isnan(x)], expected[~np.isnan(x)])


def test_shapes_strides_and_mistakes():
    bits = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    assert widen(bits, "float16").shape == (2, 3, 4)
    np.testing.assert_array_equal(widen(bits[:, ::2, ::-1], "float16"), widen(bits, "float16")[:, ::2, ::-1])
    assert widen(bits[:0], "bfloat16").shape == (0, 3, 4)
    out = np.zeros((2, 3, 4), np.float32)
    assert widen(bits, "float16", out=out) is out
    np.testing.assert_array_equal(out, widen(bits, "float16"))
    for wrong in (out[0], out.astype(np.float64), out.transpose(0, 2, 1).reshape(2, 4, 3), np.asfortranarray(out)):
        with pytest.raises(ValueError, match="out must be"):
            widen(bits, "float16", out=wrong)
    with pytest.raises(TypeError, match="uint16"):
        widen(bits.astype(np.int32), "float16")
    with pytest.raises(TypeError, match="float32"):
        narrow(np.zeros(3), "float16")
    with pytest.raises(ValueError, match="kind"):
        narrow(np.zeros(3, np.float32), "float32")


LIMITS = {
    "float16": (2.0**-24, 65504.0),
    "bfloat16": (2.0**-126, float.fromhex("0x1.fep127")),
    "float32": (2.0**-126, float(np.finfo(np.float32).max)),
}


def stored(value, kind):
    """`value` as the scale of one group, stored and read back."""
    number = SCALE_KINDS[kind]
    scale = np.zeros((1, 4), np.uint16)
    store_scale(scale, 0, 1, number, round_scale(value, number))
    return float(scale_value(scale, 0, 1, number))


@pytest.mark.parametrize("kind", LIMITS)
def test_scales_are_never_zero_nor_infinite(kind):
    smallest, largest = LIMITS[kind]
    for value in (0.0, -0.0, 1e-320, smallest / 2, float("nan")):
        assert stored(value, kind) == smallest
    for value in (largest, largest * 1.5, 1e300, float("inf")):
        assert stored(value, kind) == largest
        assert stored(-value, kind) == -largest


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_steps_from_zero_stay_finite(kind):
    number = SCALE_KINDS[kind]
    for steps in range(1, 256):
        scale = np.float32(round_scale(1e300, number, float(steps)))
        assert LIMITS[kind][1] * 0.99 < float(scale) * steps
        assert np.isfinite(scale * np.float32(steps))


@given(value=st.floats(2.0**-20, 2.0**15), sign=st.sampled_from([-1.0, 1.0]), kind=st.sampled_from(sorted(LIMITS)))
def test_scales_are_rounded_to_their_dtype(value, sign, kind):
    assert stored(sign * value, kind) == float(np.float32(sign * value).astype(DTYPES.get(kind, np.float32)))
