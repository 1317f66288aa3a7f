import numpy as np
import pytest

from llmq_kernels.hadamard import hadamard, hadamard_reference


@pytest.mark.parametrize("size", [1, 2, 32, 96, 128, 160, 256])
def test_the_kernel_does_what_the_reference_says(size):
    row = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    expected = hadamard_reference(row)
    hadamard(row, np.empty_like(row))
    np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("size", [0, 1, 24, 64, 96])
def test_is_its_own_inverse_and_keeps_products(size):
    x = np.random.default_rng(0).standard_normal((3, 5, size)).astype(np.float32)
    turned = hadamard_reference(x)
    np.testing.assert_allclose(hadamard_reference(turned), x, atol=1e-6)
    np.testing.assert_allclose(np.sum(turned[0] * turned[1], axis=-1), np.sum(x[0] * x[1], axis=-1), atol=1e-5)


def test_is_sylvesters_matrix():
    found = hadamard_reference(np.eye(8, dtype=np.float32)) * np.sqrt(8)
    signs = [[(-1) ** (i & j).bit_count() for j in range(8)] for i in range(8)]
    np.testing.assert_allclose(found, signs, atol=1e-6)
