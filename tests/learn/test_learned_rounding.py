"""Learned rounding: where it begins, where it goes, and that what it stores is what it computed with."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmq.learn.learned_rounding import LearnedRounding, Rates  # noqa: E402
from llmq.methods import quantize_tensor  # noqa: E402

STILL = Rates(0.0, 0.0, 0.0)


def _weight(rows=12, columns=64, seed=0):
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def _learned(weight, start):
    return LearnedRounding(torch.from_numpy(weight.astype(np.float32)), start)


def _rounded(learned, shape=(12, 64)):
    out = torch.empty(shape)
    learned.round_into(out)
    return out.numpy()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("how", [{}, {"symmetric": False}, {"range": "narrow"}, {"signed_scale": False}], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_begins_with_the_codes_and_the_grid_it_is_given(bits, how, dtype):
    if bits == 1 and "range" in how:
        pytest.skip("one bit has no narrow range")
    weight = _weight().astype(dtype)
    weight[0], weight[1] = 0.0, 0.5
    other = (weight.astype(np.float32) + 0.01 * _weight(seed=1)).astype(dtype)
    start = quantize_tensor(other, bits, 32, **how)
    learned = _learned(weight, start)
    found = learned.quantized()
    np.testing.assert_array_equal(found.codes(), start.codes())
    np.testing.assert_array_equal(found.scale, start.scale)
    assert (found.zero_point is None) == (start.zero_point is None)
    if start.zero_point is not None:
        np.testing.assert_array_equal(found.zero_point, start.zero_point)
    np.testing.assert_array_equal(_rounded(learned), start.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_what_is_stored_is_what_was_computed_with(bits, symmetric):
    weight = _weight().astype(ml_dtypes.bfloat16)
    start = quantize_tensor(weight, bits, 32, symmetric=symmetric)
    learned, rng = _learned(weight, start), np.random.default_rng(2)
    for _ in range(5):
        gradient = torch.from_numpy(rng.standard_normal(weight.shape).astype(np.float32))
        learned.step(gradient, Rates(0.3, 0.05, 0.4))
    found = learned.quantized()
    assert found.spec == start.spec
    assert not np.array_equal(found.codes(), start.codes())
    assert not np.array_equal(found.scale, start.scale)
    np.testing.assert_array_equal(_rounded(learned), found.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
def test_goes_where_the_gradient_leads(symmetric):
    """Least squares to another weight, by gradients of the rounded one alone."""
    weight, wanted = _weight(), _weight(seed=3)
    start = quantize_tensor(weight, 3, 32, symmetric=symmetric)
    learned = _learned(weight, start)
    before = float(np.square(start.dequantize() - wanted).sum())
    for number in range(80):
        off = _rounded(learned) - wanted
        learned.step(torch.from_numpy(off), Rates(*(rate * (1 - number / 80) for rate in (0.2, 0.015, 0.1))))
    assert float(np.square(_rounded(learned) - wanted).sum()) < 0.4 * before


def test_a_weight_at_the_end_of_the_grid_comes_back():
    weight = np.full((1, 32), 1.0, np.float32)
    weight[0, ::2] = -1.0
    start = quantize_tensor(weight, 2, 32, signed_scale=False)
    learned = _learned(weight, start)
    for sign in (-1.0, 1.0):  # up against the end, then away from it
        for _ in range(80):
            learned.step(torch.full((1, 32), sign), Rates(0.1, 0.0, 0.0))
        assert (learned.quantized().codes() == (3 if sign < 0 else 0)).all()


def test_no_gradient_moves_nothing():
    weight = _weight()
    start = quantize_tensor(weight, 2, 32)
    learned = _learned(weight, start)
    for _ in range(3):
        learned.step(torch.zeros(12, 64), Rates(0.5, 0.5, 0.5))
    np.testing.assert_array_equal(learned.quantized().packed, start.packed)
