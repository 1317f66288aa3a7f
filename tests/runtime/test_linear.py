"""Packed and dense weights as linears and as embeddings, and the `matmul` facade."""

import ml_dtypes
import numpy as np
import pytest

from llmq.methods import quantize_tensor
from llmq.runtime import matmul
from llmq.runtime.linear import DenseLinear, PackedLinear


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_dense(weight, x, dtype):
    stored = weight.astype(dtype)
    stored.flags.writeable = False
    bias = np.arange(24, dtype=np.float32)
    linear = DenseLinear(stored, bias)
    assert linear.shape == (24, 64)
    wide = stored.astype(np.float32)
    np.testing.assert_allclose(linear(x[0]), x[0] @ wide.T + bias, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(linear.rows(np.array([5, 0, 5])), wide[[5, 0, 5]])


def test_dense_refuses_other_dtypes(weight):
    with pytest.raises(TypeError, match="int8"):
        DenseLinear(weight.astype(np.int8))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed(weight, x, bits, symmetric):
    q = quantize_tensor(weight, bits=bits, group_size=32, method="rtn", symmetric=symmetric)
    bias = np.arange(24, dtype=np.float32)
    wide = q.dequantize()
    exact = PackedLinear(q, bias, "float32")
    assert exact.shape == (24, 64)
    np.testing.assert_allclose(exact(x[0]), x[0] @ wide.T + bias, rtol=1e-4, atol=1e-4)
    fast = PackedLinear(q, None, "int8")(x[0])
    assert np.abs(fast - x[0] @ wide.T).max() < 0.02 * np.abs(x[0] @ wide.T).max()
    np.testing.assert_array_equal(exact.rows(np.array([7, 0])), wide[[7, 0]])


def test_matmul_takes_any_leading_dimensions(weight, x):
    q = quantize_tensor(weight, bits=4, group_size=32, method="rtn")
    expected = x @ q.dequantize().T
    found = matmul(x, q, compute="float32")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(matmul(x[0, 0], q, compute="float32"), expected[0, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(matmul(x.astype(np.float64), q, compute="float32"), expected, rtol=1e-4, atol=1e-4)
    rounded = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(
        matmul(rounded, q, compute="float32"), rounded.astype(np.float32) @ q.dequantize().T, rtol=1e-4, atol=1e-4
    )
    assert matmul(x[:0], q).shape == (0, 3, 24)
    assert np.abs(matmul(x, q) - expected).max() < 0.02 * np.abs(expected).max()


def test_matmul_refuses_what_does_not_fit(weight, x):
    q = quantize_tensor(weight, bits=4, group_size=32, method="rtn")
    for wrong in (x[..., :63], np.float32(1.0)):
        with pytest.raises(ValueError, match="64"):
            matmul(wrong, q)
    with pytest.raises(ValueError, match="compute"):
        matmul(x, q, compute="float16")
