import ml_dtypes
import numpy as np
import pytest

import llmq
from llmq.methods import METHODS, quantize_tensor
from llmq.observers import InputMoments
from llmq.spec import QuantSpec
from llmq_kernels.search_weights import weights_reference


def weights(rows=32, columns=256, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def statistics(columns=256, seed=1):
    """Of correlated inputs of unequal energy."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2000, columns)) @ (np.eye(columns) + 0.1 * rng.standard_normal((columns, columns)))
    moments = InputMoments(columns, whole=True)
    moments.add((x * rng.exponential(1.0, columns)).astype(np.float32))
    return moments.statistics()


def output_error(weight, q, found):
    off = weight - q.dequantize()
    return float(((off @ found.moments) * off).sum())


def error(weight, q):
    return float(((weight - q.dequantize()) ** 2).sum() / (weight**2).sum())


ALONE = [name for name, method in METHODS.items() if method.needs != "block"]
"""Methods that quantize a weight by itself."""


@pytest.mark.parametrize("method", ALONE)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_method_gives_every_width(method, symmetric, bits):
    weight = weights()
    q = quantize_tensor(weight, bits=bits, group_size=64, method=method, symmetric=symmetric, statistics=statistics())
    assert q.shape == weight.shape
    assert q.codes().max() < 1 << bits
    assert (q.zero_point is None) == symmetric
    step = np.repeat(np.abs(q.scale.astype(np.float32)), 64, axis=1)
    if method == "rtn" and bits > 1:
        assert (np.abs(weight - q.dequantize()) <= step * 0.501 + 1e-9).all()
    # One bit by rtn or a percentile is plus or minus a large value of the group; gptq minds the outputs.
    if bits > 1 or method not in ("rtn", "percentile", "entropy", "gptq"):
        assert error(weight, q) < 1.0


@pytest.mark.parametrize("method", ALONE)
def test_more_bits_are_never_worse(method):
    weight, found = weights(), statistics()
    errors = [
        output_error(weight, quantize_tensor(weight, bits=b, method=method, statistics=found), found)
        for b in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_mse_is_at_least_as_near_as_rtn_in_every_group(symmetric, bits):
    weight = weights(seed=bits)
    counted = np.stack([weights_reference(group, bits) for group in weight.reshape(-1, 64)]).reshape(32, -1, 64)
    by_method = {
        m: (
            counted
            * (weight - quantize_tensor(weight, bits=bits, method=m, symmetric=symmetric).dequantize()).reshape(
                32, -1, 64
            )
            ** 2
        ).sum(axis=2)
        for m in ("rtn", "mse")
    }
    assert (by_method["mse"] <= by_method["rtn"] * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (3, 64), (2, 32)])
def test_the_ladder_of_methods(bits, group_size, symmetric):
    weight, found = weights(rows=128), statistics()
    errors = [
        output_error(
            weight,
            quantize_tensor(weight, bits, group_size, method=method, symmetric=symmetric, statistics=found),
            found,
        )
        for method in ("rtn", "mse", "imatrix", "gptq")
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.7 * errors[2]


@pytest.mark.parametrize("method", ["imatrix", "gptq"])
def test_calibrated_methods_need_statistics(method):
    with pytest.raises(ValueError, match="needs statistics"):
        quantize_tensor(weights(), method=method)


def test_gptq_needs_all_moments():
    moments = InputMoments(256)
    moments.add(np.ones((3, 256), np.float32))
    with pytest.raises(ValueError, match="all moments"):
        quantize_tensor(weights(), method="gptq", statistics=moments.statistics())


def test_a_method_for_whole_blocks_refuses_one_weight():
    with pytest.raises(ValueError, match=r"block-ap trains the linears of a decoder block together.*llmq\.quantize"):
        quantize_tensor(weights(), method="block-ap", statistics=statistics())


def test_the_spare_code_faces_the_longer_tail():
    weight = weights()
    signed = quantize_tensor(weight, bits=3, method="mse")
    positive = quantize_tensor(weight, bits=3, method="mse", signed_scale=False)
    assert (signed.scale < 0).any()
    assert (positive.scale > 0).all()
    assert error(weight, signed) < 0.95 * error(weight, positive)


def test_rtn_is_everyones_baseline():
    weight = weights()
    q = quantize_tensor(weight, bits=4, group_size=64, method="rtn")
    scale = np.abs(weight.reshape(32, 4, 64)).max(axis=2) / 7.5
    np.testing.assert_allclose(q.scale, scale, rtol=1e-6)


def test_the_textbook_grids():
    weight = weights()
    narrow = quantize_tensor(weight, bits=8, group_size=-1, method="rtn", range="narrow")
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(narrow.scale, scale, rtol=1e-6)
    codes = np.clip(np.rint(weight / narrow.scale), -127, 127)
    np.testing.assert_array_equal(narrow.codes().astype(int) - 128, codes)
    asymmetric = quantize_tensor(weight, bits=8, group_size=-1, method="rtn", symmetric=False)
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    np.testing.assert_allclose(asymmetric.scale, (high - low) / 255, rtol=1e-6)
    np.testing.assert_array_equal(asymmetric.zero_point, -np.rint(low / asymmetric.scale))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_scales_are_stored_in_the_dtype_of_the_weight(dtype):
    q = quantize_tensor(weights().astype(dtype))
    assert q.scale.dtype == (np.float32 if dtype is np.float64 else dtype)


def test_rows_do_not_depend_on_each_other():
    weight = weights(64)
    whole = quantize_tensor(weight)
    parts = [quantize_tensor(weight[i : i + 16]).packed for i in range(0, 64, 16)]
    np.testing.assert_array_equal(whole.packed, np.concatenate(parts))


def test_strided_weights_are_right():
    weight = weights()
    np.testing.assert_array_equal(
        quantize_tensor(weight.T[::2], group_size=32).codes(),
        quantize_tensor(np.ascontiguousarray(weight.T[::2]), group_size=32).codes(),
    )


@pytest.mark.parametrize(
    ("weight", "how", "error_type"),
    [
        (np.zeros((4, 64), np.int32), {}, TypeError),
        (np.zeros(64, np.float32), {}, TypeError),
        (np.zeros((4, 65), np.float32), {}, ValueError),
        (np.zeros((4, 0), np.float32), {}, ValueError),
        (np.full((4, 64), np.nan, np.float32), {}, ValueError),
        (np.full((4, 64), np.inf, np.float16), {}, ValueError),
        (np.zeros((4, 64), np.float32), {"bits": 9}, ValueError),
        (np.zeros((4, 64), np.float32), {"bits": 4.5}, ValueError),
        (np.zeros((4, 64), np.float32), {"method": "magic"}, ValueError),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight, how, error_type):
    with pytest.raises(error_type):
        quantize_tensor(weight, **how)


def test_the_facade_is_the_same_function():
    assert llmq.quantize_tensor is quantize_tensor
    assert llmq.QuantSpec is QuantSpec
