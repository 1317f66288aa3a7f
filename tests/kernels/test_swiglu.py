import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels.swiglu import swiglu, swiglu_reference


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 5),
    columns=st.integers(1, 100),
    size=st.sampled_from([1e-5, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, columns, size, seed):
    rng = np.random.default_rng(seed)
    gate = (rng.standard_normal((tokens, columns)) * size).astype(np.float32)
    up = rng.standard_normal((tokens, columns)).astype(np.float32)
    np.testing.assert_allclose(swiglu(gate, up), swiglu_reference(gate, up), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("where", ["gate", "up"])
@pytest.mark.parametrize("shape", [(3, 100), (70, 1000)])
def test_in_place(where, shape):
    rng = np.random.default_rng(0)
    arrays = dict(zip(("gate", "up"), rng.standard_normal((2, *shape)).astype(np.float32), strict=True))
    expected = swiglu_reference(**arrays)
    assert swiglu(**arrays, out=arrays[where]) is arrays[where]
    np.testing.assert_allclose(arrays[where], expected, rtol=1e-6)


def test_one_array_may_be_everything_and_another_view_of_it():
    x = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    expected = swiglu_reference(x, x)
    view = x.copy()
    np.testing.assert_allclose(swiglu(view[:], view[:], out=view), expected, rtol=1e-6)
    np.testing.assert_allclose(swiglu(x, x, out=x), expected, rtol=1e-6)


def test_many_elements_take_all_threads():
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 70, 1000)).astype(np.float32)
    np.testing.assert_allclose(swiglu(gate, up), swiglu_reference(gate, up), rtol=1e-6)


def test_the_ends():
    gate = np.array([[0.0, -0.0, 88.0, -88.0, 1e30, -1e30, np.inf, np.nan]], np.float32)
    found = swiglu(gate, np.ones_like(gate))[0]
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] == np.float32(88.0)
    assert abs(found[3]) < 1e-36
    assert found[4] == np.float32(1e30)
    assert abs(found[5]) < 1e-7
    assert found[6] == np.inf
    assert np.isnan(found[7])


def test_nan_stays_in_its_element():
    up = np.ones((2, 9), np.float32)
    up[1, 4] = np.nan
    assert np.argwhere(np.isnan(swiglu(np.ones_like(up), up))).tolist() == [[1, 4]]


def test_refuses_shapes_that_differ():
    with pytest.raises(ValueError):
        swiglu(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32))
    with pytest.raises(TypeError):
        swiglu(np.ones((2, 4), np.complex64), np.ones((2, 4), np.float32))
