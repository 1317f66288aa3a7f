import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.gather import gather, gather_reference
from llmq_kernels.layout import Grid
from llmq_kernels.quantize import dequantize, quantize
from llmq_kernels.ranges import range_scales


def matrix_of_rows(rows, columns, grid):
    weight = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    return quantize(weight, grid, *range_scales(weight, grid))


@given(
    bits=st.integers(1, 8),
    group_size=st.integers(1, 40),
    symmetric=st.booleans(),
    ids=st.lists(st.integers(0, 10), max_size=8),
)
def test_takes_rows(bits, group_size, symmetric, ids):
    matrix = matrix_of_rows(11, group_size * 3, Grid(bits, group_size, symmetric=symmetric))
    rows = np.array(ids, np.int64)
    np.testing.assert_array_equal(gather(matrix, rows), gather_reference(matrix, rows))


def test_ids_of_any_integer_dtype():
    matrix = matrix_of_rows(5, 32, Grid(4, 32))
    for dtype in (np.int32, np.uint16, np.uint64):
        np.testing.assert_array_equal(gather(matrix, np.array([4, 0], dtype)), dequantize(matrix)[[4, 0]])


@pytest.mark.parametrize("ids", [[5], [-1], [0, 2**62]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(ValueError, match="ids must be 0 to 4"):
        gather(matrix_of_rows(5, 32, Grid(4, 32)), np.array(ids))


def test_mistakes():
    matrix = matrix_of_rows(5, 32, Grid(4, 32))
    with pytest.raises(TypeError, match="integers"):
        gather(matrix, np.array([1.0]))
    with pytest.raises(ValueError, match="one-dimensional"):
        gather(matrix, np.array([[1]]))
