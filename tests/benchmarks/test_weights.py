import numpy as np
import pytest

from llmq.benchmarks.weights import Packing, RandomWeights
from llmq_kernels.quantize import dequantize


@pytest.mark.parametrize("bits", [8, 4, 3, 1])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_matrices_are_sound_and_do_not_overlap(bits, symmetric, scale_dtype):
    packing = Packing(bits, 32, symmetric, scale_dtype)
    data, matrices = RandomWeights(200_000).cut((16, 96), packing)
    assert len(matrices) > 3
    starts = [m.packed.ctypes.data for m in matrices]
    assert len(set(np.diff(starts))) == 1
    assert starts[0] == data.ctypes.data
    assert data.size == len(matrices) * (starts[1] - starts[0])
    assert sum(packing.sizes((16, 96))) <= starts[1] - starts[0]
    values = dequantize(matrices[-1])
    assert np.isfinite(values).all()
    assert np.ptp(values) == 2**bits - 1 or not symmetric
    np.testing.assert_array_equal(values, np.round(values * 2) / 2)


def test_one_matrix_at_least():
    data, matrices = RandomWeights(10).cut((8, 64), Packing(4, 64))
    assert len(matrices) == 1
    assert data.size >= 8 * 32


def test_cutting_again_reuses_the_memory():
    weights = RandomWeights(100_000)
    first, _ = weights.cut((8, 64), Packing(4, 64))
    second, matrices = weights.cut((8, 128), Packing(2, 32, symmetric=False))
    assert np.shares_memory(first, second)
    assert int(matrices[0].zero_point.max()) < 4


def test_names():
    assert Packing(4, 64).name == "4-bit g64"
    assert Packing(8, 32, symmetric=False).name == "8-bit g32 asymmetric"
