import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels import places
from llmq_kernels.activations import activation_group, activations_reference, encode_rows, quantize_activations
from llmq_kernels.chunks import ACTIVATION_ORDERS
from llmq_kernels.simd import target
from llmq_kernels.workers import launch, worker_address


@given(
    tokens=st.integers(0, 5),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(special_weight, tokens, group_size, n_groups, seed):
    x = special_weight(max(tokens, 1), group_size * n_groups, group_size, seed)[:tokens]
    codes, scale, sums = quantize_activations(x, group_size)
    assert (codes.dtype, scale.dtype, sums.dtype) == (np.int8, np.float32, np.int32)
    for found, expected in zip((codes, scale, sums), activations_reference(x, group_size), strict=True):
        np.testing.assert_array_equal(found, expected)
    step = np.repeat(scale, group_size, axis=1).astype(np.float64)
    assert (np.abs(step * codes - x) <= step / 2 * 1.00001).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_activations_show_in_the_scale(value):
    x = np.ones((2, 8), np.float32)
    x[0, 5] = value
    _, scale, _ = quantize_activations(x, 4)
    assert np.isfinite(scale).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("group_size", [1, 32, 255, 256, 257, 768, 1000, 11008, 18944, 65537, 131072])
def test_groups_are_moderate_divisors(group_size):
    found = activation_group(group_size)
    assert group_size % found == 0
    assert found * 255 * 127 < 2**31
    assert found >= min(group_size, 32) or group_size == 65537


def test_mistakes():
    x = np.zeros((2, 8), np.float32)
    for group_size in (0, 3, 16):
        with pytest.raises(ValueError, match="does not divide"):
            quantize_activations(x, group_size)
    with pytest.raises(ValueError, match="65536"):
        quantize_activations(np.zeros((1, 65537), np.float32), 65537)
    with pytest.raises(TypeError, match="x must be float32"):
        quantize_activations(x.astype(np.complex64), 4)


def order_of(planes):
    """Codes of a chunk by number, in the order of its planes; the number behind the last stands for zero."""
    if planes in ACTIVATION_ORDERS:
        return np.array(ACTIVATION_ORDERS[planes]), max(ACTIVATION_ORDERS[planes])
    codes = planes * target().width
    return np.arange(codes).reshape(-1, planes).T.ravel(), codes


def encoded(x, group, planes, factor, size=1, whole=False):
    """Run the worker by itself; what it writes, codes with some bytes around them."""
    tokens, columns = x.shape
    order, chunk = order_of(planes)
    padded, stride = -(-columns // chunk) * chunk, 4 * -(-columns // group // 16) * 16
    counter, form = np.zeros(1, np.int64), np.array([1, 0, factor, whole], np.float32)
    written = padded // chunk * order.size
    # Rows of codes need not follow each other at once.
    codes = np.full((tokens + 1, written + 64), 99, np.int8 if size == 1 else np.int16)
    scratch = np.full(2 * padded, 77, np.uint8)
    scales, sums = np.zeros((2, tokens, stride // 4), np.float32)
    p = np.zeros(places.JOBS, np.int64)
    p[places.TOKENS], p[places.COLUMNS], p[places.GROUP], p[places.PADDED] = tokens, columns, group, padded
    p[places.STRIDE], p[places.SCRATCH_BYTES], p[places.X_BYTES] = stride, padded, codes.strides[0]
    arrays = {
        places.X_COUNTER: counter,
        places.ZERO_FORM: form,
        places.X: x,
        places.X_CODES: codes,
        places.X_SCALES: scales,
        places.X_SUMS: sums,
        places.SCRATCH: scratch,
    }
    for place, array in arrays.items():
        p[place] = array.ctypes.data
    launch(worker_address(encode_rows, planes, target().lanes, size), p.ctypes.data, 2)
    assert (codes[tokens] == 99).all()
    assert (codes[:, written:] == 99).all()
    return codes[:tokens, :written], scales, sums


@pytest.mark.parametrize("planes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 32, 256])
def test_microkernels_get_the_same_in_the_order_of_planes(special_weight, planes, group):
    order, chunk = order_of(planes)
    for tokens, groups in ((1, 1), (3, 7), (20, 20)):
        x = special_weight(tokens, group * groups, group, tokens)
        codes, scales, sums = encoded(x, group, planes, -3.0)
        expected, scale, total = activations_reference(x, group)
        padded = np.pad(expected, ((0, 0), (0, -x.shape[1] % chunk))).reshape(tokens, -1, chunk)
        arranged = np.pad(padded, ((0, 0), (0, 0), (0, 1)))[:, :, order]
        np.testing.assert_array_equal(codes, arranged.reshape(tokens, -1))
        np.testing.assert_array_equal(scales[:, :groups], scale)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(sums[:, :groups], scale * total.astype(np.float32) * np.float32(-3))
        assert not scales[:, groups:].any()
        assert not sums[:, groups:].any()


def test_microkernels_get_words_in_the_order_of_split_words(special_weight):
    x = special_weight(3, 96, 32)
    codes, scales, sums = encoded(x, 32, 1, 1.0, size=2)
    narrow, *others = encoded(x, 32, 1, 1.0)
    assert codes.dtype == np.int16
    np.testing.assert_array_equal(codes.reshape(3, -1, 2, 2).transpose(0, 1, 3, 2).reshape(3, -1), narrow)
    np.testing.assert_array_equal((scales, sums), others)


def test_microkernels_get_nonfinite_activations_in_the_scale():
    x = np.ones((4, 96), np.float32)
    x[1, 40], x[2, 95], x[3, :32] = np.nan, -np.inf, 0.0
    codes, scales, sums = encoded(x, 32, 1, 1.0)
    assert np.isfinite(scales[:, :3]).tolist() == [[True] * 3, [True, False, True], [True, True, False], [True] * 3]
    np.testing.assert_array_equal(np.isfinite(scales), np.isfinite(sums))
    assert np.isnan(scales[1, 1])
    assert scales[3, 0] == np.float32(2.0**-126)
    assert not codes[3, :32].any()
    assert (np.abs(codes.astype(int)) <= 127).all()
