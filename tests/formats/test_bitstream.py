import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq.formats.bitstream import pack_columns, spread_sign_codes, unpack_columns


@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_columns_round_trip(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), np.uint8)
    packed = pack_columns(codes, bits)
    assert packed.dtype == np.int32
    assert packed.shape == (-(-rows * bits // 32), columns)
    np.testing.assert_array_equal(unpack_columns(packed, bits, rows), codes)


def test_golden_words():
    assert pack_columns(np.array([[1], [2], [3], [4], [5], [6], [7], [0], [1], [2], [7]], np.uint8), 3).tolist() == [
        [0b11_010_001_000_111_110_101_100_011_010_001 - (1 << 32)],
        [0b1],
    ]


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_blocks_of_32_rows_follow_each_other(bits):
    codes = np.random.default_rng(1).integers(0, 1 << bits, (75, 3), np.uint8)
    parts = [pack_columns(codes[start : start + 32], bits) for start in (0, 32, 64)]
    np.testing.assert_array_equal(np.concatenate(parts), pack_columns(codes, bits))


@pytest.mark.parametrize("columns", [1, 4, 15, 16, 17, 31, 32, 33, 64, 100])
def test_spread_sign_codes(columns):
    codes = np.random.default_rng(columns).integers(0, 2, (3, columns), np.uint8)
    rows = pack_columns(np.ascontiguousarray(codes.T), 1).T
    spread = spread_sign_codes(np.ascontiguousarray(rows).view(np.uint8), columns)
    expected = pack_columns(np.ascontiguousarray(2 * codes.T + 1), 2).T
    np.testing.assert_array_equal(spread, np.ascontiguousarray(expected).view(np.uint8))
