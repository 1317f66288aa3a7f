"""Every layer with every scheme equals its int64 reference to the last bit, and floats up to the steps of its grids."""

from typing import Any

import numpy as np
import pytest

from llmq.integer import Conv1d, Conv2d, Linear, Quantized
from llmq.integer.convolution import convolution_of, convolve_floats, flat_geometry
from llmq.spec import QuantScheme, QuantSpec

LAYERS: dict[str, tuple[type, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (Linear, (5, 24), (3, 24), {}),
    "linear of one token": (Linear, (7, 9), (1, 9), {}),
    "linear of many axes": (Linear, (4, 6), (2, 3, 6), {}),
    "conv2d": (Conv2d, (6, 3, 3, 3), (2, 3, 7, 8), {}),
    "conv2d 1x1": (Conv2d, (4, 5, 1, 1), (2, 5, 4, 3), {}),
    "conv2d strided": (Conv2d, (4, 2, 3, 2), (2, 2, 9, 7), {"stride": (2, 3), "padding": (1, 0)}),
    "conv2d dilated": (Conv2d, (3, 2, 3, 3), (1, 2, 9, 9), {"dilation": 2, "padding": 2}),
    "conv2d grouped": (Conv2d, (6, 2, 3, 3), (2, 4, 5, 5), {"groups": 2, "padding": 1}),
    "conv2d depthwise": (Conv2d, (4, 1, 3, 3), (2, 4, 6, 5), {"groups": 4, "padding": 1, "stride": 2}),
    "conv1d": (Conv1d, (4, 3, 5), (2, 3, 11), {"stride": 2, "padding": 2}),
    "conv1d dilated": (Conv1d, (4, 1, 3), (2, 2, 11), {"dilation": [3], "groups": 2}),
}

STATIC = QuantSpec(bits=8, strategy="tensor", symmetric=False)
INPUTS = {
    "static": STATIC,
    "static symmetric": QuantSpec(bits=8, strategy="tensor", range="narrow"),
    "static of 3 bits": QuantSpec(bits=3, strategy="tensor", symmetric=False),
    "dynamic": QuantSpec(bits=8, strategy="tensor", symmetric=False, dynamic=True),
    "dynamic symmetric": QuantSpec(bits=6, strategy="tensor", dynamic=True),
    "by token": QuantSpec(bits=8, strategy="token", symmetric=False, dynamic=True),
    "by token symmetric": QuantSpec(bits=8, strategy="token", dynamic=True),
}

WEIGHTS = [
    QuantSpec(bits=bits, strategy=strategy, symmetric=symmetric, range=range_)
    for bits in range(1, 9)
    for strategy in ("tensor", "channel")
    for symmetric, range_ in ((True, "full"), (True, "narrow"), (False, "full"))
    if bits > 1 or range_ == "full"
]


def _arrays(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, shape, x_shape, _ = LAYERS[name]
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape).astype(np.float32) * np.exp(
        random.normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    )
    return (
        weight.astype(np.float32),
        random.normal(size=shape[0]).astype(np.float32),
        random.normal(0.4, 1.0, x_shape).astype(np.float32),
    )


def _make(name: str, scheme: QuantScheme, *, bias: bool = True, output: tuple[float, float] | None = None) -> Any:
    kind, _, _, geometry = LAYERS[name]
    weight, own, x = _arrays(name)
    static = scheme.input is not None and not scheme.input.dynamic
    range_ = (float(x.min()), float(x.max())) if static else None
    return kind.quantize(weight, own if bias else None, scheme, input_range=range_, output_range=output, **geometry)


def _floats(name: str, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    kind, _, _, geometry = LAYERS[name]
    if kind is Linear:
        return x @ weight.T + bias
    if kind is Conv1d:
        weight, x, geometry = weight[:, :, None], x[:, :, None], flat_geometry(geometry)
    y = convolve_floats(x, weight, convolution_of(weight.shape, geometry)) + bias[:, None, None]
    return y[:, :, 0] if kind is Conv1d else y


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: f"{w.bits}-{w.strategy}-{w.symmetric}-{w.range}")
@pytest.mark.parametrize("name", LAYERS)
def test_every_weight(name: str, weight: QuantSpec, same: Any) -> None:
    x = _arrays(name)[2]
    for spec in (INPUTS["static"], INPUTS["by token"]):
        layer = _make(name, QuantScheme(weight, spec))
        same(layer(x), layer.reference(x))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_input(name: str, given: str, bias: bool, same: Any) -> None:
    layer = _make(name, QuantScheme(input=INPUTS[given]), bias=bias)
    for seed in range(3):
        x = _arrays(name, seed)[2]
        same(layer(x), layer.reference(x))


@pytest.mark.parametrize("bits", [8, 4, 1])
@pytest.mark.parametrize(
    "output", [QuantSpec(bits=8, strategy="tensor", symmetric=False), QuantSpec(bits=5, strategy="tensor")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_integers_go_on(name: str, output: QuantSpec, bits: int, same: Any) -> None:
    scheme = QuantScheme(QuantSpec(bits=bits, strategy="channel"), STATIC, output)
    layer = _make(name, scheme, output=(-2.0, 3.0))
    x = _arrays(name)[2]
    found = layer(x)
    assert isinstance(found, Quantized)
    same(found, layer.reference(x))
    floats = _make(name, QuantScheme(scheme.weight, STATIC))(x)
    # Scales of a few tiny rows may differ: requantizing needs factors of at least 2**-31.
    clipped = np.clip(floats, *(found.scale * (np.array(found.limits) - found.zero_point)))
    assert np.abs(found.dequantize() - clipped).max() <= 0.5001 * found.scale


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_in_groups(bits: int, symmetric: bool, same: Any) -> None:
    spec = QuantSpec(bits=bits, group_size=8, symmetric=symmetric)
    for given in INPUTS.values():
        layer = _make("linear", QuantScheme(spec, given))
        assert len(layer.weight.parts) == 3
        x = _arrays("linear")[2]
        same(layer(x), layer.reference(x))


@pytest.mark.parametrize("given", ["static", "dynamic", "by token"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_are_those_of_floats_up_to_the_grids(name: str, given: str) -> None:
    weight, bias, x = _arrays(name)
    layer = _make(name, QuantScheme(input=INPUTS[given]))
    exact = _floats(name, x.astype(np.float64), weight.astype(np.float64), bias)
    # Half a step of each weight and of each input, all to the same side, and of the bias.
    span = np.float64(max(0, x.max()) - min(0, x.min()))
    step = span / 255
    w_step = np.broadcast_to(layer.weight.scale.reshape((-1,) + (1,) * (weight.ndim - 1)), weight.shape)
    bound = _floats(name, np.abs(x) + step, w_step / 2, np.zeros_like(bias)) + _floats(
        name, np.full_like(x, step), np.abs(weight), np.zeros_like(bias)
    )
    assert (np.abs(layer(x) - exact) <= bound * 1.01 + 1e-3).all()


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_may_stay_floats(name: str) -> None:
    layer = _make(name, QuantScheme(input=None))
    bias, x = _arrays(name)[1:]
    weight = layer.weight.values
    weight = weight[:, :, 0] if isinstance(layer, Conv1d) else weight
    np.testing.assert_allclose(layer(x), _floats(name, x, weight, bias), rtol=1e-5, atol=1e-5)


def test_integer_sums_are_exposed() -> None:
    layer = _make("linear", QuantScheme(input=STATIC))
    x = layer.grids.input.encode(_arrays("linear")[2])
    sums = layer.integer_forward(x)
    assert sums.dtype == np.int32
    np.testing.assert_array_equal(sums, x.centred() @ layer.weight.parts[0].integers().astype(np.int64).T)


def test_every_filter_has_a_range_of_its_own() -> None:
    weight = np.array([[1.0, -0.5], [100.0, 3.0]], np.float32)
    by_channel = Linear.quantize(
        weight, scheme=QuantScheme(QuantSpec(bits=4, strategy="channel", range="narrow"), None)
    )
    by_tensor = Linear.quantize(weight, scheme=QuantScheme(QuantSpec(bits=4, strategy="tensor", range="narrow"), None))
    assert by_channel.weight.scale[:, 0].tolist() == pytest.approx([1 / 7, 100 / 7])
    assert by_tensor.weight.scale[:, 0].tolist() == pytest.approx([100 / 7, 100 / 7])


@pytest.mark.parametrize("given", INPUTS)
def test_a_bias_survives_rows_and_inputs_of_zeros(given: str) -> None:
    weight, bias = np.zeros((2, 4), np.float32), np.array([1e6, -3.0], np.float32)
    weight[1, 0] = 1e-30
    static = not INPUTS[given].dynamic
    layer = Linear.quantize(
        weight, bias, QuantScheme(input=INPUTS[given]), input_range=(-1e-3, 1e-3) if static else None
    )
    for x in (np.zeros((1, 4), np.float32), np.full((1, 4), 1e-25, np.float32)):
        np.testing.assert_allclose(layer(x), bias[None], rtol=1e-6)


def test_integers_of_another_grid_are_refused() -> None:
    layer = _make("linear", QuantScheme())
    x = layer.grids.input.encode(_arrays("linear")[2])
    with pytest.raises(ValueError, match=r"integers of scale .* came in \(expected"):
        layer(Quantized(x.codes, x.scale * 2, x.zero_point))
    with pytest.raises(ValueError, match=r"with 7 scales came in \(expected one"):
        layer(Quantized(x.codes, np.full(7, x.scale), np.full(7, x.zero_point)))
    with pytest.raises(ValueError, match="at run time"):
        _make("linear", QuantScheme(input=INPUTS["dynamic"]))(x)
    with pytest.raises(ValueError, match="multiplies floats"):
        _make("linear", QuantScheme(input=None))(x)


WEIGHT = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input_range is missing"),
        ({"input_range": (0, 1), "output_range": (0, 1)}, "the scheme has no output"),
        ({"input_range": (0, 1), "bias": np.ones(3, np.float32)}, r"shape \(4,\), not \(3,\)"),
        ({"input_range": (0, 1), "bias": np.full(4, np.nan)}, "must be finite, not NaN"),
        ({"input_range": (0, 1, 2)}, r"input_range must be two numbers, not \(0, 1, 2\)"),
        ({"input_range": 3}, "input_range must be two numbers, not 3"),
        ({"weight": np.ones((0, 6)), "input_range": (0, 1)}, "empty"),
        ({"input_range": (1, 0)}, "above its upper end"),
        ({"weight": np.full((4, 6), np.inf), "input_range": (0, 1)}, "NaN or infinity"),
        ({"weight": np.ones((4, 0)), "input_range": (0, 1)}, "empty"),
        ({"weight": np.ones(4), "input_range": (0, 1)}, "out_features, in_features"),
        ({"scheme": QuantScheme(input=INPUTS["dynamic"]), "input_range": (0, 1)}, "found at run time"),
        (
            {"scheme": QuantScheme(QuantSpec(group_size=4)), "input_range": (0, 1)},
            "groups of 4 do not divide rows of 6",
        ),
        (
            {"scheme": QuantScheme(QuantSpec(strategy="channel", observer="eye")), "input_range": (0, 1)},
            "unknown observer 'eye'",
        ),
        (
            {
                "scheme": QuantScheme(QuantSpec(group_size=3), output=STATIC),
                "input_range": (0, 1),
                "output_range": (0, 1),
            },
            "one scale for each row",
        ),
        ({"weight": np.ones((1, 40000)), "bias": np.ones(1), "input_range": (0, 1)}, "do not hold 40000 products"),
    ],
)
def test_layers_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    given = {"weight": WEIGHT, **arguments}
    with pytest.raises(ValueError, match=message):
        Linear.quantize(given.pop("weight"), given.pop("bias", None), given.pop("scheme", None), **given)


@pytest.mark.parametrize(
    ("kind", "shape", "arguments", "message"),
    [
        (Conv2d, (4, 2, 3), {}, "filters, channels, height, width"),
        (Conv2d, (4, 2, 3, 3), {"stride": 0}, "stride must be"),
        (Conv2d, (4, 2, 3, 3), {"padding": "same"}, "padding must be one whole number or two"),
        (Conv2d, (4, 2, 3, 3), {"padding": -1}, "padding must be"),
        (Conv2d, (4, 2, 3, 3), {"groups": 3}, "do not make 3 groups"),
        (Conv2d, (4, 2, 3, 3), {"groups": "2"}, "groups must be one whole number, not '2'"),
        (Conv2d, (4, 2, 3, 3), {"groups": True}, "groups must be one whole number, not True"),
        (Conv1d, (4, 2, 3, 3), {}, "filters, channels, length"),
        (Conv1d, (4, 2, 3), {"stride": (1, 2)}, "stride must be one whole number"),
        (Conv2d, (4, 2, 3, 3), {"scheme": QuantScheme(QuantSpec(group_size=9))}, "not one a group"),
    ],
)
def test_convolutions_that_cannot_be(kind: Any, shape: tuple[int, ...], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.quantize(np.ones(shape, np.float32), input_range=(0.0, 1.0), **arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_that_do_not_fit(name: str) -> None:
    layer = _make(name, QuantScheme())
    with pytest.raises(ValueError, match="x must have shape"):
        layer(np.zeros((2, 77), np.float32))
    with pytest.raises(TypeError, match="float32, not int64"):
        layer(np.zeros(LAYERS[name][2], np.int64))
    empty = np.zeros((0, *LAYERS[name][2][1:]), np.float32)
    for spec in (*INPUTS.values(), None):
        assert _make(name, QuantScheme(input=spec))(empty).shape[0] == 0


@pytest.mark.parametrize("name", LAYERS)
def test_lists_are_arrays_too(name: str) -> None:
    layer, x = _make(name, QuantScheme()), _arrays(name)[2]
    np.testing.assert_array_equal(layer(x.astype(float).tolist()), layer(x))
    with pytest.raises(TypeError, match="x must be float32, not int64"):
        layer(x.astype(np.int64).tolist())


def test_what_is_no_weight_and_no_scheme() -> None:
    for weight in (None, WEIGHT.astype(complex), [["a"]]):
        with pytest.raises(TypeError, match="weight must be an array of floats, not"):
            Linear.quantize(weight, input_range=(0, 1))  # type: ignore[arg-type]
    for kind, ones in ((Linear, WEIGHT), (Conv1d, WEIGHT[..., None]), (Conv2d, WEIGHT[..., None, None])):
        with pytest.raises(TypeError, match="scheme must be a QuantScheme, not QuantSpec"):
            kind.quantize(ones, None, QuantSpec(strategy="channel"), input_range=(0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
def test_values_that_are_not_finite(name: str) -> None:
    x = np.zeros(LAYERS[name][2], np.float32)
    lowest = np.full_like(x, -99.0)
    static = _make(name, QuantScheme())
    for value in (np.nan, -np.inf):
        np.testing.assert_array_equal(static(x + np.float32(value)), static(lowest))
        with pytest.raises(ValueError, match="must be finite"):
            _make(name, QuantScheme(input=INPUTS["dynamic"]))(x + np.float32(value))
