import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq_kernels import dense
from llmq_kernels.dense import matmul_dense, matmul_dense_reference
from llmq_kernels.dense_rows import MOST_TOKENS
from llmq_kernels.floats import narrow
from llmq_kernels.layout import SCALE_KINDS

KINDS = sorted(SCALE_KINDS)


def stored(weight, kind):
    return weight if kind == "float32" else narrow(weight, kind)


@settings(max_examples=120)
@given(
    tokens=st.integers(0, 9),
    rows=st.integers(0, 40),
    columns=st.integers(1, 1100),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_reference(tokens, rows, columns, kind, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    bits = stored(weight, kind)
    bits.flags.writeable = False
    limit = 1e-5 * np.abs(x).astype(np.float64) @ np.abs(weight).T * 1.01
    assert (np.abs(matmul_dense(x, bits, kind) - matmul_dense_reference(x, bits, kind)) <= limit).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
def test_integers_are_exact(kind, tokens):
    rng = np.random.default_rng(tokens)
    for rows, columns in ((1, 1), (1, 7), (3, 8), (4, 9), (5, 31), (13, 64), (66, 515)):
        x = rng.integers(-9, 10, (tokens, columns)).astype(np.float32)
        weight = rng.integers(-9, 10, (rows, columns)).astype(np.float32)
        np.testing.assert_array_equal(matmul_dense(x, stored(weight, kind), kind), x @ weight.T)


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_weights_of_every_kind_of_number(tokens):
    # Zeros, subnormal numbers and the largest ones, each alone in its column.
    values = np.array([0, 0x8000, 1, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00], np.uint16)
    weight = np.where(np.eye(8, dtype=bool), values, np.uint16(0))
    x = np.full((tokens, 8), 2.0, np.float32)
    for kind in ("float16", "bfloat16"):
        np.testing.assert_array_equal(matmul_dense(x, weight, kind), matmul_dense_reference(x, weight, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_token(kind, tokens, value):
    # In the whole vectors of a row, and in what is left of it.
    for column in (40, 66):
        weight = stored(np.ones((9, 67), np.float32), kind)
        for bad in range(tokens):
            x = np.ones((tokens, 67), np.float32)
            x[bad, column] = value
            found = matmul_dense(x, weight, kind)
            np.testing.assert_array_equal(found[bad], np.full(9, value))
            assert (found[np.arange(tokens) != bad] == 67).all()


@pytest.mark.parametrize("tokens", [1, 4, 6])
def test_nan_in_a_weight_stays_in_its_row(tokens):
    for column in (40, 66):
        weight = np.ones((11, 67), np.float32)
        weight[[3, 10], column] = np.nan, np.inf
        found = matmul_dense(np.ones((tokens, 67), np.float32), weight)
        assert np.isnan(found[:, 3]).all()
        assert np.isinf(found[:, 10]).all()
        assert (found[:, [0, 1, 2, 4, 5, 6, 7, 8, 9]] == 67).all()


@pytest.mark.parametrize("tokens", [1, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_or_all_change_no_byte(tokens, kind, each_thread_count, monkeypatch):
    rng = np.random.default_rng(0)
    # Large enough for threads.
    x, weight = rng.standard_normal((tokens, 1030)).astype(np.float32), rng.standard_normal((530, 1030))
    bits = stored(weight.astype(np.float32), kind)
    alone = matmul_dense(x, bits, kind)
    monkeypatch.setattr(dense, "_PARALLEL", 0)
    np.testing.assert_array_equal(matmul_dense(x, bits, kind), alone)
    each_thread_count(lambda: [matmul_dense(x, bits, kind).tobytes()])


def test_company_changes_no_byte():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((9, 70)).astype(np.float32), rng.standard_normal((90, 70)).astype(np.float32)
    few = matmul_dense(x[:MOST_TOKENS], weight)
    for tokens in range(1, MOST_TOKENS):
        np.testing.assert_array_equal(matmul_dense(x[:tokens], weight), few[:tokens])
        np.testing.assert_array_equal(matmul_dense(x[:tokens], weight[20:55]), few[:tokens, 20:55])


def test_writes_where_it_is_told():
    rng = np.random.default_rng(0)
    for tokens in (1, 5):
        x, weight = rng.standard_normal((tokens, 70)).astype(np.float32), rng.standard_normal((90, 70))
        out = np.full((tokens, 90), np.nan, np.float32)
        assert matmul_dense(x, weight.astype(np.float32), out=out) is out
        np.testing.assert_allclose(out, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_reads_any_layout():
    rng = np.random.default_rng(0)
    for tokens in (1, 5):
        for columns in (1, 24):
            x, weight = rng.standard_normal((tokens, columns)).astype(np.float32), rng.standard_normal((30, columns))
            wide = np.repeat(weight.astype(np.float32), 2, axis=1)
            expected = matmul_dense(x, wide[:, ::2].copy())
            np.testing.assert_array_equal(matmul_dense(x, wide[:, ::2]), expected)
            np.testing.assert_array_equal(matmul_dense(np.asfortranarray(x), np.asfortranarray(wide)[:, ::2]), expected)
            np.testing.assert_array_equal(matmul_dense(x, wide[::-1, ::2][:1]), expected[:, -1:])


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
