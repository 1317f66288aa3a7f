import numpy as np
import pytest

from llmq_kernels.hadamard import hadamard_reference
from llmq_kernels.keyvalue_rows import decode_rows_reference, encode_rows_reference
from llmq_kernels.keyvalues import KeyValues


@pytest.mark.parametrize(("bits", "bytes_"), [(32, 512), (16, 256), (8, 132), (4, 68)])
def test_bytes_of_a_token(bits, bytes_):
    assert KeyValues.empty((2, 10, 128), bits).nbytes == 2 * 2 * 10 * bytes_


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_grows_and_keeps_what_it_holds(bits):
    keys, values = np.random.default_rng(0).standard_normal((2, 3, 5, 12)).astype(np.float32)
    cache = KeyValues.of(keys, values, bits)
    larger = cache.grown(9, 4)
    assert larger.capacity == 9
    for new, old in zip(larger.arrays, cache.arrays, strict=True):
        np.testing.assert_array_equal(new[:, :4], old[:, :4])


def test_bounds_of_the_error():
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    codes, scale = encode_rows_reference(x, 8)
    assert (np.abs(decode_rows_reference(codes, scale) - x) <= scale[:, None] * 0.5001).all()
    assert (np.abs(decode_rows_reference(*encode_rows_reference(x, 16)) - x) <= np.abs(x) / 256).all()
    codes, scale = encode_rows_reference(x, 4)
    turned, steps = hadamard_reference(x), np.abs(scale)[:, None]
    off = np.abs(hadamard_reference(decode_rows_reference(codes, scale)) - turned)
    beyond = turned / scale[:, None] > 7.5
    assert 0 < beyond.sum() < 50
    assert (off <= steps * np.where(beyond, 1.0001, 0.5001)).all()


def test_a_few_large_elements_cost_little_in_4_bits():
    x = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    noise = [np.square(decode_rows_reference(*encode_rows_reference(rows, 4)) - rows).mean() for rows in (x, spiked(x))]
    assert noise[1] < 8 * noise[0]
    scale = np.abs(spiked(x)).max(axis=1, keepdims=True) / 8
    assert noise[1] < 0.5 * np.square(np.rint(spiked(x) / scale) * scale - spiked(x)).mean()


def test_rows_are_lost_where_what_is_held_of_them_is_out_of_range():
    x = np.full((2, 128), 2e37, np.float32)
    x[1] *= -1.0
    codes, scale = encode_rows_reference(x, 4)
    np.testing.assert_allclose(decode_rows_reference(codes, scale), x, rtol=1e-5)
    with np.errstate(over="ignore", invalid="ignore"):
        codes, scale = encode_rows_reference(2 * x, 4)
        assert np.isnan(decode_rows_reference(codes, scale)).all()


def spiked(x):
    """Rows with one element of 20 times its size, as keys have."""
    return x * np.where(np.arange(x.shape[1]) == 7, np.float32(20), np.float32(1))


def test_refuses_what_does_not_fit():
    good = KeyValues.empty((2, 4, 8), 8)
    keys, values, scale, _ = good.arrays
    with pytest.raises(ValueError, match="bits"):
        KeyValues.empty((2, 4, 8), 3)
    with pytest.raises(ValueError, match="do not fit"):
        KeyValues(8, keys, values[:, :3].copy(), scale, scale)
    with pytest.raises(ValueError, match="do not fit"):
        KeyValues(17, keys, values, scale, scale)
    with pytest.raises(ValueError, match="scales"):
        KeyValues(8, keys, values, scale, scale[:, :0].copy())
    with pytest.raises(TypeError):
        KeyValues(8, keys.astype(np.int16), values, scale, scale)
    with pytest.raises(ValueError, match="do not fit"):
        KeyValues(33, keys.view(np.uint8), values.view(np.uint8), scale, scale)
    with pytest.raises(TypeError):
        KeyValues(8, keys, values, scale.astype(np.float64), scale)
    with pytest.raises(ValueError, match="contiguous"):
        KeyValues(8, keys[:, ::-1], values, scale, scale)
