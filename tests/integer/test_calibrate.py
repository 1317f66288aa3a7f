from typing import Any

import numpy as np
import pytest

from llmq.integer import (
    AdaptiveAvgPool2d,
    Embedding,
    Flatten,
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    MaxPool2d,
    Quantized,
    ReLU,
    Residual,
    Sequential,
    calibrate,
)
from llmq.spec import QuantScheme, QuantSpec

OUTPUT = QuantSpec(bits=8, strategy="tensor", symmetric=False)
FLOATS, INTEGERS = QuantScheme(), QuantScheme(output=OUTPUT)
DYNAMIC = QuantScheme(input=QuantSpec(bits=8, strategy="token", symmetric=False, dynamic=True))


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _network() -> list[Any]:
    body = Sequential((ReLU(), FloatConv2d(_random(8, 8, 3, 3, seed=2), _random(8), geometry={"padding": 1})))
    shortcut = Sequential((FloatConv2d(_random(8, 8, 1, 1, seed=3)),))
    return [
        FloatConv2d(_random(8, 3, 3, 3), _random(8, seed=1), geometry={"padding": 1}),
        MaxPool2d(2),
        Residual(body),
        Residual(body, shortcut),
        ReLU(),
        AdaptiveAvgPool2d(),
        Flatten(),
        FloatLinear(_random(16, 8, seed=4), _random(16, seed=5)),
        ReLU(),
        FloatLinear(_random(4, 16, seed=6)),
    ]


def _floats(layers: list[Any], x: np.ndarray) -> np.ndarray:
    for layer in layers:
        x = np.asarray(layer(x))
    return x


@pytest.mark.parametrize("scheme", [FLOATS, INTEGERS, DYNAMIC], ids=["static", "integers", "dynamic"])
def test_a_network_computes_nearly_what_it_did(scheme: QuantScheme) -> None:
    layers = _network()
    batches = [np.random.default_rng(i).normal(size=(16, 3, 8, 8)).astype(np.float32) for i in range(4)]
    network = calibrate(layers, batches[:3], scheme)
    exact, found = _floats(layers, batches[3]), network(batches[3])
    assert isinstance(found, np.ndarray)
    assert found.shape == (16, 4)
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_array_equal(found, network.reference(batches[3]))


def test_integers_flow_between_layers() -> None:
    layers = _network()
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    network = calibrate(layers, [x], INTEGERS)
    value: Any = x
    for layer in network.layers[:-1]:
        value = layer(value)
        assert isinstance(value, Quantized)
    assert isinstance(network.layers[-1](value), np.ndarray)


def test_ranges_come_from_all_batches() -> None:
    layers = [FloatLinear(np.eye(2, dtype=np.float32))]
    network = calibrate(layers, [np.array([[0.0, 1.0]], np.float32), np.array([[-3.0, 0.0]], np.float32)])
    grid = network.layers[0].grids.input  # type: ignore[attr-defined]
    assert float(grid.scale) == pytest.approx(4 / 255)


def test_layers_may_have_schemes_of_their_own() -> None:
    kept = QuantScheme(QuantSpec(bits=2, strategy="channel"), None)
    layers = [FloatConv1d(_random(2, 2, 3), scheme=kept), FloatConv1d(_random(2, 2, 3))]
    network = calibrate(layers, [_random(4, 2, 9)], INTEGERS)
    assert [layer.weight.spec.bits for layer in network.layers] == [2, 8]  # type: ignore[attr-defined]
    assert isinstance(network(_random(4, 2, 9)), np.ndarray)


def test_nested_layers_are_quantized_too() -> None:
    layers = _network()
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    flat = calibrate(layers, [x], INTEGERS)
    nested = calibrate(Sequential((Sequential(tuple(layers[:3])), *layers[3:])), [x], INTEGERS)
    assert [type(layer) for layer in nested.layers] == [type(layer) for layer in flat.layers]
    np.testing.assert_array_equal(nested(x), flat(x))


def test_a_network_may_look_up_its_input() -> None:
    table, weight = _random(10, 6), _random(3, 6, seed=1)
    network = [Embedding.quantize(table, QuantSpec(bits=8, strategy="channel")), FloatLinear(weight)]
    ids = np.arange(10).reshape(5, 2)
    found = calibrate(network, [ids])(ids)
    np.testing.assert_allclose(found, table[ids] @ weight.T, atol=0.05)


def test_layers_that_give_nothing_but_zeros() -> None:
    dead = FloatLinear(_random(4, 4), np.full(4, -100.0, np.float32))
    network = [dead, ReLU(), FloatLinear(_random(3, 4), _random(3, seed=1))]
    quantized = calibrate(network, [_random(8, 4)], INTEGERS)
    last: Any = quantized.layers[-1]
    # The bias is rounded to steps of s_x * s_w.
    step = last.grids.input.scale * last.weight.scale[:, 0]
    assert (np.abs(quantized(_random(2, 4, seed=2)) - _random(3, seed=1)) <= 0.501 * step).all()


def test_images_not_in_a_list() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3, height, width\), not \(3, 5, 5\)"):
        calibrate([FloatConv2d(_random(2, 3, 3, 3))], _random(4, 3, 5, 5))


def test_data_is_needed() -> None:
    with pytest.raises(ValueError, match="nothing was observed"):
        calibrate([FloatLinear(_random(2, 2))], [])
    unknown = QuantScheme(input=QuantSpec(bits=8, strategy="tensor", observer="eye"))
    with pytest.raises(ValueError, match="unknown observer"):
        calibrate([FloatLinear(_random(2, 2))], [_random(1, 2)], unknown)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", [-1, 8])
def test_embeddings_are_rows_of_the_table(bits: int, group_size: int) -> None:
    table = _random(10, 24)
    layer = Embedding.quantize(table, QuantSpec(bits=bits, group_size=group_size, symmetric=bits % 2 == 0))
    ids = np.array([[3, 0], [9, 3]])
    np.testing.assert_array_equal(layer(ids), layer.weight.values[ids])
    assert layer(ids[:0]).shape == (0, 2, 24)
    with pytest.raises(IndexError, match="0 to 9, found -1 to 3"):
        layer(np.array([3, -1]))
    with pytest.raises(TypeError, match="integers"):
        layer(np.array([0.5]))
