"""Every layer with every scheme, in both styles, gives in onnxruntime what it gives itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmq.integer import Conv1d, Conv2d, Linear, Quantized
from llmq.spec import QuantScheme, QuantSpec

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from llmq.onnx import integer_model  # noqa: E402  needs onnx

LAYERS: dict[str, tuple[type, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (Linear, (5, 24), (3, 24), {}),
    "linear of many axes": (Linear, (4, 6), (2, 3, 6), {}),
    "conv2d strided": (Conv2d, (4, 2, 3, 2), (2, 2, 9, 7), {"stride": (2, 3), "padding": (1, 0)}),
    "conv2d dilated": (Conv2d, (3, 2, 3, 3), (1, 2, 9, 9), {"dilation": 2, "padding": 2}),
    "conv2d grouped": (Conv2d, (6, 2, 3, 3), (2, 4, 5, 5), {"groups": 2, "padding": 1}),
    "conv2d depthwise": (Conv2d, (4, 1, 3, 3), (2, 4, 6, 5), {"groups": 4, "padding": 1, "stride": 2}),
    "conv1d": (Conv1d, (4, 3, 5), (2, 3, 11), {"stride": 2, "padding": 2}),
    "conv1d grouped": (Conv1d, (4, 1, 3), (2, 2, 11), {"dilation": [3], "groups": 2, "padding": 1}),
}

STATIC = QuantSpec(bits=8, strategy="tensor", symmetric=False)
INPUTS: dict[str, QuantSpec | None] = {
    "none": None,
    "static": STATIC,
    "static symmetric": QuantSpec(bits=8, strategy="tensor", range="narrow"),
    "static of 3 bits": QuantSpec(bits=3, strategy="tensor", symmetric=False),
    "dynamic": QuantSpec(bits=8, strategy="tensor", symmetric=False, dynamic=True),
    "dynamic of 5 bits": QuantSpec(bits=5, strategy="tensor", symmetric=False, dynamic=True),
    "dynamic symmetric": QuantSpec(bits=6, strategy="tensor", dynamic=True),
    "by token": QuantSpec(bits=8, strategy="token", symmetric=False, dynamic=True),
    "by token symmetric": QuantSpec(bits=8, strategy="token", dynamic=True),
    "by token of 4 bits": QuantSpec(bits=4, strategy="token", symmetric=False, dynamic=True),
}

WEIGHTS = [
    QuantSpec(bits=bits, strategy=strategy, symmetric=symmetric)
    for bits in range(1, 9)
    for strategy in ("tensor", "channel")
    for symmetric in (True, False)
]

STYLES = ["qdq", "qoperator"]


def _arrays(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, shape, x_shape, _ = LAYERS[name]
    random = np.random.default_rng(7)
    spread = np.exp(random.normal(size=(shape[0],) + (1,) * (len(shape) - 1)))
    weight = (random.normal(size=shape) * spread).astype(np.float32)
    return weight, random.normal(size=shape[0]).astype(np.float32), random.normal(0.4, 1.0, x_shape).astype(np.float32)


def _make(name: str, scheme: QuantScheme, *, bias: bool = True) -> Any:
    kind, _, _, geometry = LAYERS[name]
    weight, own, x = _arrays(name)
    static = scheme.input is not None and not scheme.input.dynamic
    ranges = (float(x.min()), float(x.max())) if static else None, None if scheme.output is None else (-2.0, 3.0)
    names = ("input_range", "output_range")
    return kind.quantize(weight, own if bias else None, scheme, **dict(zip(names, ranges, strict=True)), **geometry)


def _run(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    model = integer_model(layer, input_shape=x.shape[1:], **options)  # which the checker has passed
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x})
    return found


def _agrees(layer: Any, x: np.ndarray, **options: Any) -> None:
    found = _run(layer, x, **options)
    for expected in (layer(x), layer.reference(x)):
        if isinstance(expected, Quantized):
            steps = np.abs(found - expected.dequantize()) / expected.scale
            assert steps.max() < 1e-3, options
        else:
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max(), options


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_weight(name: str, style: str) -> None:
    x = _arrays(name)[2]
    for i, weight in enumerate(WEIGHTS):
        given = list(INPUTS.values())[i * 7 % len(INPUTS)]
        _agrees(_make(name, QuantScheme(weight, given)), x, style=style, signed=i % 3 == 0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_input(name: str, given: str, style: str) -> None:
    x = _arrays(name)[2]
    eight = QuantSpec(bits=8, strategy="channel", symmetric=False)
    _agrees(_make(name, QuantScheme(input=INPUTS[given]), bias=False), x, style=style)
    layer = _make(name, QuantScheme(eight, INPUTS[given]))
    _agrees(layer, x, style=style, signed=name in ("linear", "conv2d grouped"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("given", INPUTS)
def test_nothing_but_zeros_gives_the_bias(given: str, style: str) -> None:
    for name in ("linear", "conv2d grouped"):
        layer, x = _make(name, QuantScheme(input=INPUTS[given])), np.zeros_like(_arrays(name)[2])
        if (given, style) != ("dynamic", "qoperator"):
            _agrees(layer, x, style=style)
        else:  # DynamicQuantizeLinear takes a scale of 1 for zeros, so the bias counts steps of the weight.
            half = 0.501 * layer.weight.scale[:, 0].max()
            assert np.abs(_run(layer, x, style=style) - layer(x)).max() <= half
        _agrees(layer, x, style=style, signed=True)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_integers_go_on(name: str, bits: int, style: str) -> None:
    x = _arrays(name)[2]
    for i, b in enumerate((8, 8, 4, 1)):
        weight = QuantSpec(bits=b, strategy="channel", symmetric=i != 1)
        scheme = QuantScheme(weight, STATIC, replace(STATIC, bits=bits))
        _agrees(_make(name, scheme, bias=i > 0), x, style=style, signed=i == 2)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("given", INPUTS)
def test_weights_in_groups(given: str, style: str) -> None:
    x = _arrays("linear")[2]
    for bits in range(1, 9):
        spec = QuantSpec(bits=bits, group_size=8, symmetric=bits % 2 == 0)
        layer = _make("linear", QuantScheme(spec, INPUTS[given]))
        _agrees(layer, x, style=style)
        _agrees(layer, np.stack([x, 2 * x]), style=style, signed=True)


@pytest.mark.parametrize("style", STYLES)
def test_requantizing_rounds_as_the_layer_does_but_on_the_edge(style: str) -> None:
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(64, 256)).astype(np.float32), random.normal(size=(512, 256)).astype(np.float32)
    ranges = {"input_range": (-3.0, 3.0), "output_range": (-40.0, 40.0)}
    layer = Linear.quantize(weight, weight[:, 0], QuantScheme(input=STATIC, output=STATIC), **ranges)
    expected = layer(x)
    steps = np.rint((_run(layer, x, style=style) - expected.dequantize()) / expected.scale)
    assert np.abs(steps).max() <= 1
    assert np.count_nonzero(steps) < 1e-4 * steps.size


@pytest.mark.parametrize("style", STYLES)
def test_products_of_extremes_are_exact(style: str) -> None:
    # Pairs of such products overflow 16 bits, in which some kernels add them.
    weight, x = np.ones((16, 64), np.float32), np.full((4, 64), 255.0, np.float32)
    layer = Linear.quantize(weight, None, QuantScheme(), input_range=(0.0, 255.0))
    np.testing.assert_array_equal(_run(layer, x, style=style), layer(x))


def _types(model: Any) -> dict[str, str]:
    return {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "INT8"), (7, "INT8"), (4, "INT4"), (3, "INT4"), (2, "INT2"), (1, "INT2")]
)
def test_weights_are_stored_in_the_narrowest_type(bits: int, kind: str, style: str) -> None:
    layer = _make("linear", QuantScheme(QuantSpec(bits=bits, strategy="channel")))
    assert _types(integer_model(layer, style=style, signed=True))["Linear/weight"] == kind
    assert _types(integer_model(layer, style=style))["Linear/weight"] == f"U{kind}"
    older = integer_model(layer, style=style, opset=21)
    assert older.opset_import[0].version == 21
    assert _types(older)["Linear/weight"] == f"U{kind.replace('2', '4')}"
    _agrees(layer, _arrays("linear")[2], style=style, opset=21)


def test_operators_are_those_of_the_style() -> None:
    names = ("linear", "conv2d strided")
    floats = {name: _make(name, QuantScheme()) for name in names}
    integers = {name: _make(name, QuantScheme(output=STATIC), bias=False) for name in names}

    def operators(layer: Any, style: str) -> set[str]:
        return {node.op_type for node in integer_model(layer, style=style).graph.node}

    qdq = {"QuantizeLinear", "DequantizeLinear"}
    assert operators(floats["linear"], "qdq") == operators(integers["linear"], "qdq") == {*qdq, "Gemm"}
    assert operators(floats["conv2d strided"], "qdq") == {*qdq, "Conv"}
    assert operators(floats["linear"], "qoperator") == {"QuantizeLinear", "MatMulInteger", "Cast", "Mul", "Add"}
    assert operators(floats["conv2d strided"], "qoperator") == {"QuantizeLinear", "ConvInteger", "Cast", "Mul", "Add"}
    assert operators(integers["linear"], "qoperator") == {*qdq, "QLinearMatMul"}
    assert operators(integers["conv2d strided"], "qoperator") == {*qdq, "QLinearConv"}
    dynamic = _make("linear", QuantScheme(input=INPUTS["dynamic"]))
    assert "DynamicQuantizeLinear" in operators(dynamic, "qoperator")


@pytest.mark.parametrize("output", [None, STATIC])
def test_onnxruntime_finds_integer_kernels_in_qdq(output: QuantSpec | None, tmp_path: Any) -> None:
    path = str(tmp_path / "optimized.onnx")
    for bits in (8, 4, 2):
        layer = _make("linear", QuantScheme(QuantSpec(bits=bits, strategy="channel"), STATIC, output))
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = path
        settings.log_severity_level = 3
        model = integer_model(layer).SerializeToString()
        onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert "QGemm" in operators
        assert not {"Cast", "Gemm"} & operators
