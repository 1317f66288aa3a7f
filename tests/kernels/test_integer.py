import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import drawn

from llmq_kernels import integer_product
from llmq_kernels.integer import integer_matmul, integer_matmul_reference
from llmq_kernels.integer_weight import IntegerWeight
from llmq_kernels.pack import pack
from llmq_kernels.simd import target
from llmq_kernels.tiles import tile_rows

BITS = range(1, 9)


@settings(max_examples=150)
@given(
    tokens=st.integers(0, 40),
    rows=st.integers(0, 80),
    columns=st.integers(1, 1100),
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    each=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(tokens, rows, columns, bits, symmetric, each, seed):
    rng = np.random.default_rng(seed)
    weight = drawn(rng, rows, columns, bits, symmetric)
    x = rng.integers(-128, 128, (tokens, columns), np.int8)
    points = rng.integers(-128, 128, tokens, np.int32) if each else int(rng.integers(-128, 128))
    found = integer_matmul(x, weight, x_zero_point=points)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, integer_matmul_reference(x, weight, points))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kept", [True, False])
def test_rows_of_several_blocks_and_tokens_in_parts(monkeypatch, bits, kept):
    monkeypatch.setattr(integer_product, "_KEPT_TILES", 1 << 20 if kept else -1)
    monkeypatch.setattr(integer_product, "_PRODUCTS", 0)
    monkeypatch.setattr(integer_product, "_FEWEST", 11)
    rng = np.random.default_rng(bits)
    tile = tile_rows(target())
    for rows, columns in ((2 * tile + 5, 2600), (tile, 1024), (1, 1025)):
        weight = drawn(rng, rows, columns, bits, False)
        x = rng.integers(-128, 128, (25, columns), np.int8)
        points = rng.integers(-128, 128, 25, np.int32)
        for _ in range(2):
            found = integer_matmul(x, weight, x_zero_point=points)
            np.testing.assert_array_equal(found, integer_matmul_reference(x, weight, points))
        assert ("_tiles" in vars(weight)) == kept


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tokens", [1, 4, 9, 130])
def test_nothing_saturates(bits, tokens):
    # All extremes at once: pairs and runs of the largest products of either sign.
    for code, x in ((0, -128), (2**bits - 1, -128), (2**bits - 1, 127), (0, 127)):
        for point in (-128, 127):
            weight = IntegerWeight.of(np.full((17, 512), code, np.uint8), bits)
            inputs = np.full((tokens, 512), x, np.int8)
            found = integer_matmul(inputs, weight, x_zero_point=point)
            np.testing.assert_array_equal(found, integer_matmul_reference(inputs, weight, point))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_most_columns_hold_in_32_bits(bits, symmetric):
    points = None if symmetric else np.zeros(1, np.uint8)
    most = (2**31 - 1) // (255 * (2 ** (bits - 1) if symmetric else 2**bits - 1))
    columns = min(most, 80_000)
    weight = IntegerWeight.of(np.zeros((1, columns), np.uint8), bits, points)
    x = np.full((1, columns), -128, np.int8)
    np.testing.assert_array_equal(integer_matmul(x, weight, x_zero_point=127), integer_matmul_reference(x, weight, 127))
    if most == columns:
        with pytest.raises(ValueError, match=f"at most {most} columns"):
            IntegerWeight.of(np.zeros((1, most + 1), np.uint8), bits, points)


@pytest.mark.parametrize("bits", BITS)
def test_writes_into_out_and_not_beyond(bits):
    rng = np.random.default_rng(bits)
    weight, x = drawn(rng, 19, 70, bits, False), rng.integers(-128, 128, (7, 70), np.int8)
    room = np.full((9, 19), 77, np.int32)
    assert integer_matmul(x, weight, out=room[1:8]).base is room
    np.testing.assert_array_equal(room[1:8], integer_matmul_reference(x, weight))
    assert (room[[0, 8]] == 77).all()


def test_copies_and_pickles_of_a_weight_that_was_used():
    rng = np.random.default_rng(0)
    weight, x = drawn(rng, 19, 70, 4, False), rng.integers(-128, 128, (7, 70), np.int8)
    expected = integer_matmul(x, weight)
    others = copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))
    assert all(vars(other).keys() == {"packed", "bits", "columns", "zero_point"} for other in others)
    weight.packed[:] = 0  # what a copy must not read
    for other in others:
        np.testing.assert_array_equal(integer_matmul(x, other), expected)


def test_python_threads_share_a_weight():
    rng = np.random.default_rng(0)
    weight = drawn(rng, 300, 500, 8, True)
    inputs = [rng.integers(-128, 128, (tokens, 500), np.int8) for tokens in (1, 2, 3, 4, 9, 17) for _ in range(4)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = pool.map(lambda x: integer_matmul(x, weight), inputs)
            for x, y in zip(inputs, found, strict=True):
                np.testing.assert_array_equal(y, integer_matmul_reference(x, weight))


def test_the_same_for_any_number_of_threads(each_thread_count):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (33, 640), np.int8)
    weights = [drawn(rng, 130, 640, bits, False) for bits in (8, 5, 4)]
    each_thread_count(lambda: [integer_matmul(x, weight, x_zero_point=3).tobytes() for weight in weights])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bits": 9}, ValueError, "bits must be 1 to 8, not 9"),
        ({"packed": np.zeros((2, 4), np.int8)}, TypeError, "packed must be uint8, not int8"),
        ({"packed": np.zeros((2, 8), np.uint8)}, ValueError, r"shape \(rows, 4\), not \(2, 8\)"),
        ({"packed": np.zeros((2, 8), np.uint8)[:, ::2]}, ValueError, "C-contiguous"),
        ({"zero_point": np.zeros(2, np.int32)}, TypeError, "zero_point must be uint8, not int32"),
        ({"zero_point": np.zeros(3, np.uint8)}, ValueError, r"shape \(2,\), not \(3,\)"),
        ({"zero_point": np.full(2, 16, np.uint8)}, ValueError, "zero_point must be 0 to 15, found 16"),
    ],
)
def test_weights_that_are_refused(changes, error, message):
    arguments = {"packed": pack(np.zeros((2, 8), np.uint8), 4), "bits": 4, "columns": 8, "zero_point": None}
    with pytest.raises(error, match=message):
        IntegerWeight(**(arguments | changes))


@pytest.mark.parametrize(
    ("x", "point", "error", "message"),
    [
        (np.zeros((2, 8), np.float32), 0, TypeError, "x must be int8, not float32"),
        (np.zeros((2, 9), np.int8), 0, ValueError, r"\(rows, 8\), not \(2, 9\)"),
        (np.zeros((2, 8), np.int8), 0.5, TypeError, "x_zero_point must be integers"),
        (np.zeros((2, 8), np.int8), 128, ValueError, "-128 to 127, found 128"),
        (np.zeros((2, 8), np.int8), np.zeros(3, np.int32), ValueError, r"shape \(2,\), not \(3,\)"),
    ],
)
def test_inputs_that_are_refused(x, point, error, message):
    with pytest.raises(error, match=message):
        integer_matmul(x, IntegerWeight.of(np.zeros((3, 8), np.uint8), 4), x_zero_point=point)
