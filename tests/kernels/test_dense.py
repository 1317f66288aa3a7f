import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels import dense
from llmq_kernels.dense import matmul_dense, matmul_dense_reference
from llmq_kernels.floats import narrow
from llmq_kernels.layout import SCALE_KINDS


@settings(max_examples=50)
@given(
    tokens=st.integers(0, 9),
    rows=st.integers(0, 40),
    columns=st.integers(1, 1100),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, rows, columns, kind, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    bits = weight if kind == "float32" else narrow(weight, kind)
    bits.flags.writeable = False
    limit = 1e-5 * np.abs(x).astype(np.float64) @ np.abs(weight).T * 1.01
    assert (np.abs(matmul_dense(x, bits, kind) - matmul_dense_reference(x, bits, kind)) <= limit).all()


def test_one_thread_or_all_change_no_byte(each_thread_count, monkeypatch):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 70)).astype(np.float32), rng.standard_normal((90, 70)).astype(np.float32)
    alone = matmul_dense(x, weight)
    monkeypatch.setattr(dense, "_PARALLEL", 0)
    np.testing.assert_array_equal(matmul_dense(x, weight), alone)
    each_thread_count(lambda: [matmul_dense(x, weight).tobytes()])


def test_writes_where_it_is_told():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 70)).astype(np.float32), rng.standard_normal((90, 70)).astype(np.float32)
    out = np.full((5, 90), np.nan, np.float32)
    assert matmul_dense(x, weight, out=out) is out
    np.testing.assert_allclose(out, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_nan_and_infinity_stay_in_their_row():
    x = np.ones((6, 64), np.float32)
    x[1, 40], x[5, 3] = np.nan, np.inf
    found = matmul_dense(x, np.ones((9, 64), np.float32))
    assert np.isnan(found[1]).all()
    assert np.isinf(found[5]).all()
    assert (found[[0, 2, 3, 4]] == 64).all()


def test_mistakes():
    x, weight = np.zeros((2, 8), np.float32), np.zeros((3, 8), np.uint16)
    with pytest.raises(ValueError, match="kind"):
        matmul_dense(x, weight, "int8")
    with pytest.raises(TypeError, match="must be float32"):
        matmul_dense(x, weight)
    with pytest.raises(TypeError, match="must be uint16"):
        matmul_dense(x, weight.astype(np.float32), "float16")
    with pytest.raises(ValueError, match="weight must have shape"):
        matmul_dense(x, weight[:, :7], "float16")
