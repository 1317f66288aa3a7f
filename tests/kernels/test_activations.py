import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.activations import activation_group, activations_reference, quantize_activations


@given(
    tokens=st.integers(0, 5),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(special_weight, tokens, group_size, n_groups, seed):
    x = special_weight(max(tokens, 1), group_size * n_groups, group_size, seed)[:tokens]
    codes, scale, sums = quantize_activations(x, group_size)
    assert (codes.dtype, scale.dtype, sums.dtype) == (np.int8, np.float32, np.int32)
    for found, expected in zip((codes, scale, sums), activations_reference(x, group_size), strict=True):
        np.testing.assert_array_equal(found, expected)
    step = np.repeat(scale, group_size, axis=1).astype(np.float64)
    assert (np.abs(step * codes - x) <= step / 2 * 1.00001).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_activations_show_in_the_scale(value):
    x = np.ones((2, 8), np.float32)
    x[0, 5] = value
    _, scale, _ = quantize_activations(x, 4)
    assert np.isfinite(scale).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("group_size", [1, 32, 255, 256, 257, 768, 1000, 11008, 18944, 65537, 131072])
def test_groups_are_moderate_divisors(group_size):
    found = activation_group(group_size)
    assert group_size % found == 0
    assert found * 255 * 127 < 2**31
    assert found >= min(group_size, 32) or group_size == 65537


def test_mistakes():
    x = np.zeros((2, 8), np.float32)
    for group_size in (0, 3, 16):
        with pytest.raises(ValueError, match="does not divide"):
            quantize_activations(x, group_size)
    with pytest.raises(ValueError, match="65536"):
        quantize_activations(np.zeros((1, 65537), np.float32), 65537)
    with pytest.raises(TypeError, match="x must be float32"):
        quantize_activations(x.astype(np.complex64), 4)
