import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.layout import row_bytes
from llmq_kernels.pack import pack, pack_reference, unpack


@given(bits=st.integers(1, 8), rows=st.integers(0, 4), columns=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_equals_the_reference_and_round_trips(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    packed = pack(codes, bits)
    np.testing.assert_array_equal(packed, pack_reference(codes, bits))
    np.testing.assert_array_equal(unpack(packed, bits, columns), codes)


def test_golden_bytes():
    eight = np.array([[-8, -7, 0, 1, 2, 3, 4, 7]]) + 8
    assert pack(eight.astype(np.uint8), 4).tobytes() == bytes.fromhex("1098bafc")
    assert pack(np.array([[1, 2, 3, 0, 3]], np.uint8), 2).tobytes() == bytes([0b00111001, 0b11, 0, 0])
    assert pack(np.array([[1, 0, 0, 0, 0, 0, 0, 1, 1]], np.uint8), 1).tobytes() == bytes([0x81, 0x01, 0, 0])
    # 001 010 111 from the low end: 111 010 001 = 0x1d1.
    assert pack(np.array([[1, 2, 7]], np.uint8), 3).tobytes() == bytes([0xD1, 0x01, 0, 0])
    assert pack(np.array([[7, 255]], np.uint8), 8).tobytes() == bytes([7, 255, 0, 0])


def test_unpacking_reads_a_view_of_a_file_and_nothing_beside_it():
    codes = np.arange(3 * 37, dtype=np.uint8).reshape(3, 37) & 7
    file = np.frombuffer(b"\xff" + pack(codes, 3).tobytes() + b"\xff", np.uint8)
    packed = file[1:-1].reshape(3, row_bytes(37, 3))
    assert not packed.flags.writeable
    np.testing.assert_array_equal(unpack(packed, 3, 37), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_equal_compressed_tensors(bits):
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for columns in (1, 31, 37, 64, 129):
        codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, columns), dtype=np.uint8)
        signed = torch.from_numpy((codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8))
        words = helpers.pack_to_int32(signed, bits).numpy()
        np.testing.assert_array_equal(pack(codes, bits).view("<i4"), words)


def test_mistakes():
    codes = np.zeros((2, 8), np.uint8)
    with pytest.raises(ValueError, match="bits must be 1 to 8"):
        pack(codes, 9)
    with pytest.raises(ValueError, match="more than 2 bits"):
        pack(codes + 4, 2)
    with pytest.raises(TypeError, match="uint8"):
        pack(codes.astype(np.int8), 4)
    with pytest.raises(ValueError, match="shape"):
        pack(codes[0], 4)
    with pytest.raises(ValueError, match="shape"):
        unpack(codes, 4, 17)
    with pytest.raises(ValueError, match="bits must be 1 to 8"):
        unpack(codes, 0, 8)
    with pytest.raises(TypeError, match="uint8"):
        unpack(codes.view(np.int8), 8, 8)
