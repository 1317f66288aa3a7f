import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.observers import dequantize_array, quantize_array, scale_and_zero_point
from llmq.spec import QuantSpec

SPECS = [
    QuantSpec(bits=bits, symmetric=symmetric, range=range_)
    for bits in range(1, 9)
    for symmetric in (True, False)
    for range_ in ("full", "narrow")
    if range_ == "full" or (symmetric and bits > 1)
]
ENDS = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=25)
@given(ends=st.tuples(ENDS, ENDS))
def test_values_in_the_range_are_off_by_half_a_step(spec: QuantSpec, ends: tuple[float, float]) -> None:
    low, high = min(ends), max(ends)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    x = np.linspace(low, high, 101).astype(np.float32)
    found = dequantize_array(quantize_array(x, scale, zero_point, spec), scale, zero_point, spec)
    # One bit has no code near zero: a whole step lies between its values.
    steps = 1.0 if spec.bits == 1 and spec.symmetric else 0.5
    # An asymmetric zero point is rounded, which moves the range by half a step.
    room = 0.5 if not spec.symmetric else 0.0
    # Ratios up to 2**bits round in float32.
    assert np.abs(found - x).max() <= (steps + room + 2.0 ** (spec.bits - 22)) * scale


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_zero_is_a_code_of_its_own(spec: QuantSpec) -> None:
    if spec.bits == 1 and spec.symmetric:
        return
    scale, zero_point = scale_and_zero_point(0.3, 5.0, spec)
    zero = quantize_array(np.zeros(1, np.float32), scale, zero_point, spec)
    assert dequantize_array(zero, scale, zero_point, spec) == 0


def test_channels_have_scales_of_their_own() -> None:
    scale, zero_point = scale_and_zero_point([-1.0, -4.0], [3.0, 0.0], QuantSpec(bits=2, symmetric=False))
    assert zero_point is not None
    assert scale.tolist() == pytest.approx([4 / 3, 4 / 3])
    assert zero_point.tolist() == [1, 3]


def test_a_range_of_zeros_gives_zeros() -> None:
    for spec in SPECS:
        scale, zero_point = scale_and_zero_point(0.0, 0.0, spec)
        codes = quantize_array(np.zeros(3, np.float32), scale, zero_point, spec)
        assert np.abs(dequantize_array(codes, scale, zero_point, spec)).max() < 1e-30


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_ranges_that_are_none_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="range"):
        scale_and_zero_point(low, high, QuantSpec())


def test_ranges_as_wide_as_float32_have_finite_scales() -> None:
    most = np.finfo(np.float32).max
    for spec in SPECS:
        scale, _ = scale_and_zero_point(-most, most, spec)
        assert np.isfinite(scale)
