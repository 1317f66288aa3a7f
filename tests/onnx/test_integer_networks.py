"""Networks of many layers, what their models look like, and what cannot be written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmq
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.integer import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv2d,
    Embedding,
    Flatten,
    FloatConv1d,
    FloatConv2d,
    FloatLinear,
    Linear,
    MaxPool2d,
    Quantized,
    ReLU,
    Residual,
    Sequential,
    calibrate,
    save,
)
from llmq.spec import QuantScheme, QuantSpec

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from llmq.onnx import export_integer, export_saved, integer_model  # noqa: E402  needs onnx

STYLES = ["qdq", "qoperator"]
OUTPUT = QuantSpec(bits=8, strategy="tensor", symmetric=False)


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _session(model: Any) -> Any:
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def _run(model: Any, x: np.ndarray) -> np.ndarray:
    (found,) = _session(model).run(None, {"input": x})
    return found


def _images(output: QuantSpec | None) -> Sequential:
    body = Sequential((FloatConv2d(_random(4, 4, 3, 3), geometry={"padding": 1}), ReLU()))
    layers = [
        FloatConv2d(_random(4, 3, 3, 3), _random(4), geometry={"padding": 1}),
        MaxPool2d(3, 2, 1),
        Residual(body, Sequential((FloatConv2d(_random(4, 4, 1, 1)),))),
        ReLU(),
        Residual(Sequential((FloatConv2d(_random(4, 1, 3, 3), geometry={"padding": 1, "groups": 4}),))),
        AvgPool2d((2, 1), stride=1, padding=(1, 0)),
        Flatten(2),
        Flatten(),
        FloatLinear(_random(5, 80), _random(5)),
    ]
    return calibrate(layers, [_random(8, 3, 8, 8)], QuantScheme(output=output))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("output", [None, OUTPUT], ids=["floats between", "integers between"])
def test_images(output: QuantSpec | None, style: str) -> None:
    network, x = _images(output), _random(16, 3, 8, 8, seed=1)
    model = integer_model(network, input_shape=(3, 8, 8), style=style)
    onnx.checker.check_model(model, full_check=True)
    for expected in (network(x), network.reference(x)):
        error = np.abs(_run(model, x) - expected).max(axis=1) / np.abs(expected).max()
        # A value on the edge between two codes may be rounded the other way.
        assert np.median(error) < 1e-6
        assert error.max() < 0.01


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "layer",
    [AvgPool2d(2), AvgPool2d((3, 2), 1, (1, 0)), AdaptiveAvgPool2d(), MaxPool2d((2, 3), 2, 1), ReLU(), Flatten(-1)],
    ids=str,
)
def test_codes_that_flow_on_are_the_same(layer: Any, bits: int, style: str) -> None:
    spec = QuantSpec(bits=bits, strategy="tensor", symmetric=False)
    # The identity, so that codes are those of the input: means of them are often halves.
    first = Conv2d.quantize(np.eye(3, dtype=np.float32)[:, :, None, None], None, QuantScheme(input=spec, output=spec),
                            input_range=(-1.0, 2.0), output_range=(-1.0, 2.0))  # fmt: skip
    network, x = Sequential((first, layer)), _random(8, 3, 8, 8)
    expected = network(x)
    assert isinstance(expected, Quantized)
    for signed in (False, True):
        found = _run(integer_model(network, style=style, signed=signed), x)
        np.testing.assert_array_equal(found, expected.dequantize())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(bits=bits, strategy=strategy, symmetric=symmetric, group_size=4)
        for bits in (8, 4, 3, 1)
        for strategy, symmetric in (("tensor", True), ("channel", False), ("group", True), ("group", False))
    ],
    ids=str,
)
def test_embeddings(spec: QuantSpec, style: str) -> None:
    table, ids = Embedding.quantize(_random(9, 8), spec), np.array([[0, 8, 3], [3, 3, 1]])
    np.testing.assert_array_equal(_run(integer_model(table, style=style), ids), table(ids))
    linear = Linear.quantize(_random(5, 8), _random(5), QuantScheme(input=OUTPUT), input_range=(-2.0, 2.0))
    network = Sequential((table, linear, ReLU()))
    found, expected = _run(integer_model(network, style=style, signed=True), ids), network(ids)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("style", STYLES)
def test_layers_that_stayed_float(style: str) -> None:
    layers = (
        FloatConv1d(_random(4, 2, 3), _random(4), geometry={"padding": 1, "groups": 2}),
        Flatten(),
        FloatLinear(_random(5, 36), _random(5)),
        ReLU(),
    )
    network, x = Sequential(layers), _random(3, 4, 9, seed=1)
    expected = network(x)
    found = _run(integer_model(network, input_shape=(4, 9), style=style), x)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_models_say_who_made_them_and_what_goes_in_and_out() -> None:
    model = integer_model(_images(OUTPUT), input_shape=(3, 8, 8))
    assert (model.producer_name, model.producer_version) == ("llmq", llmq.__version__)
    assert {p.key: p.value for p in model.metadata_props} == {"llmq.style": "qdq", "llmq.codes": "uint8"}
    ends = [*_session(model).get_inputs(), *_session(model).get_outputs()]
    assert [(end.name, end.shape) for end in ends] == [("input", ["batch", 3, 8, 8]), ("output", ["batch", 5])]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"0.Conv2d/Conv", "2.body.0.Conv2d/Conv", "2.shortcut.0.Conv2d/Conv", "2.add.Add/Add"} <= set(names)
    assert {"0.Conv2d/weight", "8.Linear/bias"} <= {t.name for t in model.graph.initializer}


def test_sizes_can_stay_open() -> None:
    network = Sequential((Conv2d.quantize(_random(4, 3, 3, 3), input_range=(-3.0, 3.0)), AdaptiveAvgPool2d()))
    model = integer_model(network)
    assert _session(model).get_inputs()[0].shape == ["batch", 3, "axis_2", "axis_3"]
    for shape in ((1, 3, 5, 4), (7, 3, 3, 9)):
        x = _random(*shape)
        assert np.abs(_run(model, x) - network(x)).max() <= 1e-6 * np.abs(network(x)).max()


def test_files(tmp_path: Path) -> None:
    network, x = _images(OUTPUT), _random(2, 3, 8, 8, seed=1)
    export_integer(network, tmp_path / "a.onnx", input_shape=(3, 8, 8), style="qoperator")
    save(network, tmp_path / "network.safetensors")
    export_saved(tmp_path / "network.safetensors", tmp_path / "b.onnx", input_shape=(3, 8, 8), style="qoperator")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    assert np.abs(_run(tmp_path / "a.onnx", x) - network(x)).max() < 0.01 * np.abs(network(x)).max()
    with pytest.raises(InputError, match="none"):
        export_saved(tmp_path / "none.safetensors", tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        export_integer(network, tmp_path / "nowhere" / "a.onnx")
    before = (tmp_path / "network.safetensors").read_bytes()
    with pytest.raises(UsageError, match="would replace the network itself"):
        export_saved(tmp_path / "network.safetensors", tmp_path / "network.safetensors")
    assert (tmp_path / "network.safetensors").read_bytes() == before


class Doubling:
    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + x


def _linear(scheme: QuantScheme, **ranges: Any) -> Linear:
    return Linear.quantize(_random(4, 4), None, scheme, **ranges)


def test_what_has_no_onnx_form_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"0\.body\.1\.Doubling: .*Conv2d"):
        integer_model(Sequential((Residual(Sequential((ReLU(), Doubling()))),)), input_shape=(4,))
    ends = {"input_range": (-1.0, 1.0), "output_range": (-1.0, 1.0)}
    integers = _linear(QuantScheme(input=OUTPUT, output=OUTPUT), **ends)
    other = _linear(QuantScheme(), input_range=(-2.0, 2.0))
    # Shapes with an open size, since such networks cannot be tried.
    with pytest.raises(UnsupportedError, match=r"1\.Linear: integers of another grid"):
        integer_model(Sequential((integers, other)), input_shape=(None, 4))
    floats = _linear(QuantScheme(QuantSpec(bits=4, group_size=4), None))
    with pytest.raises(UnsupportedError, match=r"1\.Linear: integers come in"):
        integer_model(Sequential((integers, floats)), input_shape=(None, 4))
    with pytest.raises(UnsupportedError, match=r"1\.FloatLinear: integers come in"):
        integer_model(Sequential((integers, FloatLinear(_random(4, 4)))), input_shape=(None, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "qat"}, "qdq or qoperator.*'qat'"),
        ({"opset": 20}, "21 to 25.*20"),
        ({"input_shape": (0, 8, 8)}, "at least 1"),
        ({"input_shape": (3, 2, 2)}, r"items of shape \(3, 2, 2\)"),
        ({"input_shape": (4, 8, 8)}, r"first layer.*\(3, None, None\)"),
        ({"input_shape": (3, 8)}, "first layer"),
        ({"input_shape": (4, None, 8)}, "first layer"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        integer_model(_images(OUTPUT), **{"input_shape": (3, 8, 8)} | options)


def test_a_shape_that_nothing_tells_is_asked_for() -> None:
    for network in (Sequential((ReLU(),)), Sequential((Flatten(), _linear(QuantScheme(), input_range=(-1.0, 1.0))))):
        with pytest.raises(UsageError, match="no layer tells"):
            integer_model(network)
