from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from llmq.integer import ActivationGrid, AdaptiveAvgPool2d, Add, AvgPool2d, Flatten, MaxPool2d, Quantized, ReLU
from llmq.spec import QuantSpec

SPEC = QuantSpec(bits=8, strategy="tensor", symmetric=False)
POOLS = [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (2, 3), "stride": (1, 2)}]


def _codes(shape: tuple[int, ...] = (2, 3, 7, 8), point: int = -20, scale: float = 0.05) -> Quantized:
    codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    return Quantized(codes, np.asarray(scale, np.float32), np.asarray(point, np.int32))


@pytest.mark.parametrize("arguments", POOLS)
def test_pooling_of_floats_is_that_of_torch(arguments: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 8)).astype(np.float32)
    np.testing.assert_array_equal(MaxPool2d(**arguments)(x), functional.max_pool2d(torch.from_numpy(x), **arguments))
    mean = functional.avg_pool2d(torch.from_numpy(x), **arguments).numpy()
    np.testing.assert_allclose(AvgPool2d(**arguments)(x), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arguments", POOLS)
def test_maxima_of_codes_are_codes_of_maxima(arguments: Any) -> None:
    x = _codes()
    found = MaxPool2d(**arguments)(x)
    np.testing.assert_array_equal(found.dequantize(), MaxPool2d(**arguments)(x.dequantize()))


def _rounded(values: np.ndarray, x: Quantized) -> np.ndarray:
    """Means of centred codes, exactly, and rounded half to even."""
    return np.clip(np.rint(values) + x.zero_point, -128, 127)


@pytest.mark.parametrize("arguments", POOLS)
def test_means_of_codes_are_rounded_once(arguments: Any) -> None:
    x = _codes()
    exact = functional.avg_pool2d(torch.from_numpy(x.centred()).double(), **arguments).numpy()
    np.testing.assert_array_equal(AvgPool2d(**arguments)(x).codes, _rounded(exact, x))


def test_the_mean_of_a_channel() -> None:
    x = _codes()
    found = AdaptiveAvgPool2d(1)(x)
    assert found.shape == (2, 3, 1, 1)
    np.testing.assert_array_equal(found.codes, _rounded(x.centred().mean(axis=(2, 3), keepdims=True), x))
    floats = x.dequantize()
    np.testing.assert_allclose(AdaptiveAvgPool2d()(floats), floats.mean(axis=(2, 3), keepdims=True), rtol=1e-5)


def test_tokens_keep_scales_of_their_own() -> None:
    codes = _codes().codes
    scale, point = np.array([0.5, 2.0], np.float32), np.array([3, -50], np.int32)
    whole = Quantized(codes, scale, point)
    for layer in (ReLU(), AvgPool2d(2), MaxPool2d(2), AdaptiveAvgPool2d(), Flatten()):
        together = layer(whole)
        for i in range(2):
            alone = layer(Quantized(codes[i : i + 1], scale[i], point[i]))
            np.testing.assert_array_equal(together.dequantize()[i], alone.dequantize()[0])


def test_relu_and_flatten() -> None:
    x = _codes()
    np.testing.assert_array_equal(ReLU()(x).dequantize(), np.maximum(x.dequantize(), 0))
    np.testing.assert_array_equal(ReLU()(x.dequantize()), np.maximum(x.dequantize(), 0))
    assert Flatten()(x).shape == (2, 168)
    assert Flatten(2)(x.dequantize()).shape == (2, 3, 56)


def test_sums_of_codes_are_rounded_once() -> None:
    a, b = _codes(scale=0.05), _codes(point=7, scale=0.013)
    b = b.with_codes(b.codes[::-1])
    add = Add.quantize(SPEC, (-9.0, 12.0))
    found = add(a, b)
    exact = a.centred() * np.float64(a.scale) + b.centred() * np.float64(b.scale)
    expected = np.clip(np.rint(exact / np.float64(found.scale)) + found.zero_point, -128, 127)
    np.testing.assert_array_equal(found.codes, expected)


def test_a_branch_too_small_to_be_seen() -> None:
    large, tiny = _codes(), _codes(scale=1e-30)
    alone = Add.quantize(SPEC, (-9.0, 12.0))(large, tiny.with_codes(np.full_like(tiny.codes, tiny.zero_point)))
    np.testing.assert_array_equal(Add.quantize(SPEC, (-9.0, 12.0))(large, tiny).codes, alone.codes)


def test_sums_of_floats_and_of_both() -> None:
    a = _codes()
    floats = a.dequantize()
    np.testing.assert_array_equal(Add()(floats, floats), 2 * floats)
    np.testing.assert_array_equal(Add()(a, floats), 2 * floats)
    mixed = Add.quantize(SPEC, (-20.0, 20.0))(a, floats)
    assert np.abs(mixed.dequantize() - 2 * floats).max() <= 0.5001 * mixed.scale
    with pytest.raises(ValueError, match="shapes"):
        Add()(a, floats[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxPool2d(0), "at least 1"),
        (lambda: AvgPool2d(2, padding=2), "half of the kernel"),
        (lambda: MaxPool2d((1, 2, 3)), "one whole number or two"),
        (lambda: MaxPool2d(2.5), "one whole number or two, not 2.5"),
        (lambda: AdaptiveAvgPool2d(2), "one mean a channel"),
        (lambda: AdaptiveAvgPool2d()(np.zeros((1, 1, 0, 9), np.float32)), r"hold pixels, not \(1, 1, 0, 9\)"),
        (lambda: AdaptiveAvgPool2d()(np.zeros((3, 9), np.float32)), r"hold pixels, not \(3, 9\)"),
        (lambda: MaxPool2d(3)(np.zeros((1, 1, 2, 9), np.float32)), "hold windows"),
    ],
)
def test_layers_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_no_images_at_all() -> None:
    none = np.zeros((0, 3, 4, 4), np.float32)
    for x in (none, ActivationGrid.of(SPEC, (-1.0, 1.0)).encode(none)):
        assert [layer(x).shape for layer in (Flatten(), Flatten(2), MaxPool2d(2), AdaptiveAvgPool2d())] == [
            (0, 48),
            (0, 3, 16),
            (0, 3, 2, 2),
            (0, 3, 1, 1),
        ]
