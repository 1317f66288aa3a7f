import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from llmq.errors import InputError, UnsupportedError
from llmq.integer import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Embedding,
    Flatten,
    FloatConv2d,
    FloatLinear,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    calibrate,
    load,
    save,
)
from llmq.spec import QuantScheme, QuantSpec

BY_TOKEN = QuantSpec(bits=8, strategy="token", dynamic=True, symmetric=False)
OUTPUT = QuantSpec(bits=8, strategy="tensor", symmetric=False)


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _images() -> Sequential:
    body = Sequential((FloatConv2d(_random(4, 4, 3, 3), geometry={"padding": 1}), ReLU()))
    layers = [
        FloatConv2d(_random(4, 3, 3, 3), _random(4), geometry={"padding": 1}),
        MaxPool2d(2),
        Residual(body, Sequential((FloatConv2d(_random(4, 4, 1, 1)),))),
        AvgPool2d((2, 1), stride=1, padding=(1, 0)),
        AdaptiveAvgPool2d(),
        Flatten(),
        FloatLinear(_random(5, 4), _random(5)),
    ]
    return calibrate(layers, [_random(8, 3, 8, 8)], QuantScheme(output=OUTPUT))


NETWORKS: dict[str, tuple[Any, np.ndarray]] = {
    "images": (_images(), _random(2, 3, 8, 8, seed=1)),
    "groups by token": (
        Linear.quantize(_random(5, 24), _random(5), QuantScheme(QuantSpec(bits=3, group_size=8), BY_TOKEN)),
        _random(4, 24, seed=1),
    ),
    "asymmetric groups of floats": (
        Linear.quantize(_random(5, 24), None, QuantScheme(QuantSpec(bits=5, group_size=8, symmetric=False), None)),
        _random(4, 24, seed=1),
    ),
    "signs": (
        Conv1d.quantize(_random(4, 2, 3), None, QuantScheme(QuantSpec(bits=1, strategy="tensor"), BY_TOKEN), groups=2),
        _random(2, 4, 9, seed=1),
    ),
    "embedding": (
        Sequential((Embedding.quantize(_random(9, 8), QuantSpec(bits=4, group_size=8)),)),
        np.array([[0, 8], [3, 3]]),
    ),
    "no weights": (Sequential((ReLU(),)), _random(2, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_computes_what_was_written(name: str, tmp_path: Path) -> None:
    network, x = NETWORKS[name]
    save(network, tmp_path / "network.safetensors")
    found = load(tmp_path / "network.safetensors")
    assert type(found) is type(network)
    np.testing.assert_array_equal(np.asarray(found(x)), np.asarray(network(x)))


def test_files_are_no_larger_than_their_weights(tmp_path: Path) -> None:
    layer = Linear.quantize(_random(256, 512), None, QuantScheme(QuantSpec(bits=2, strategy="channel"), BY_TOKEN))
    save(layer, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < layer.weight.nbytes + 2000 == 256 * 512 // 4 + 256 * 4 + 2000


def test_sizes_of_numpy_can_be_written(tmp_path: Path) -> None:
    save(MaxPool2d(np.int64(2)), tmp_path / "a")
    assert load(tmp_path / "a") == MaxPool2d(2)


def test_other_layers_cannot_be_written(tmp_path: Path) -> None:
    class Own:
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(UnsupportedError, match=r"network: layers of the kind int cannot"):
        save(3, tmp_path / "b")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"network\.layers\.1: layers of the kind Own"):
        save(Sequential((ReLU(), Own())), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def _changed(tmp_path: Path, change: Any) -> Path:
    """Write a network after changing its tree and its tensors."""
    path = tmp_path / "a"
    layer = Conv2d.quantize(_random(2, 1, 2, 2), _random(2), input_range=(0.0, 1.0))
    save(Sequential((layer, MaxPool2d(2))), path)
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        tree = json.loads(file.metadata()["llmq.integer"])
    change(tree, tree["network"]["layers"][0], tensors)
    save_file(tensors, path, {"llmq.integer": json.dumps(tree)})
    return path


PREFIX = "network.layers.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree, conv, tensors: tree.pop("network"), "a version and a network"),
        (lambda tree, conv, tensors: tree.update(network=[]), "is no layer"),
        (lambda tree, conv, tensors: tree.update(network=conv["geometry"]), "is no layer"),
        (lambda tree, conv, tensors: conv.update(kind="Conv9d"), "unknown kind 'Conv9d'"),
        (lambda tree, conv, tensors: conv.update(kind=["Conv2d"]), "unknown kind"),
        (lambda tree, conv, tensors: conv.pop("bias"), "must have the fields"),
        (lambda tree, conv, tensors: conv.update(bias=3), "bias: unexpected int"),
        (lambda tree, conv, tensors: conv["geometry"].update(stride=[1.5, 1]), "unexpected float among its items"),
        (lambda tree, conv, tensors: conv["geometry"].update(stride=[0, 1]), "stride must be"),
        (lambda tree, conv, tensors: conv["geometry"].update(kernel=[1, 4]), "do not fit"),
        (lambda tree, conv, tensors: conv["geometry"].update(groups=3), "do not fit"),
        (lambda tree, conv, tensors: conv["grids"]["input"].update(scale=-1.0), "positive"),
        (lambda tree, conv, tensors: conv["grids"]["input"].update(zero_point=128), "-128 to 127"),
        (lambda tree, conv, tensors: conv["grids"]["input"].update(zero_point=1 << 40), "-128 to 127"),
        (lambda tree, conv, tensors: conv["grids"]["input"].update(scale=None), "unless its spec is dynamic"),
        (lambda tree, conv, tensors: conv["weight"].update(shape=[2, 4]), "do not fit"),
        (lambda tree, conv, tensors: conv["weight"].update(shape=[]), "do not make a weight"),
        (lambda tree, conv, tensors: conv["weight"].update(parts=[]), "do not make a weight"),
        (lambda tree, conv, tensors: conv["weight"]["spec"].update(bits=9), "bits must be 1 to 8"),
        (lambda tree, conv, tensors: conv["weight"]["spec"].update(bits=7), "do not make a weight"),
        (lambda tree, conv, tensors: conv["weight"]["parts"][0].update(columns=5), "packed must have shape"),
        (lambda tree, conv, tensors: tree["network"]["layers"][1].update(kernel_size=0), "at least 1"),
        (lambda tree, conv, tensors: tensors.pop(f"{PREFIX}.bias"), "bias: the tensor is missing"),
        (lambda tree, conv, tensors: tensors.update(more=np.zeros(1, np.uint8)), "more: belongs to no layer"),
        (lambda tree, conv, tensors: tensors.update(more=np.zeros(1, np.int64)), "more: unexpected dtype"),
        (lambda tree, conv, tensors: tensors.update({f"{PREFIX}.bias": np.zeros(2, np.uint8)}), "bias must be"),
        (lambda tree, conv, tensors: tensors.update({f"{PREFIX}.bias": np.full(2, np.nan, np.float32)}), "finite"),
        (
            lambda tree, conv, tensors: tensors.update({f"{PREFIX}.weight.scale": np.zeros((2, 1), np.float32)}),
            "scale must be positive",
        ),
        (
            lambda tree, conv, tensors: tensors.update({f"{PREFIX}.weight.scale": np.ones((1, 2), np.float32)}),
            r"scale must be float32 \(2, 1\)",
        ),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(_changed(tmp_path, change))
    assert str(caught.value).startswith("a: ")
    assert "\n" not in str(caught.value)


def test_versions_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"unknown version \(expected 1, found 2\)"):
        load(_changed(tmp_path, lambda tree, conv, tensors: tree.update(version=2)))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "b")
    with pytest.raises(InputError, match="b: no network"):
        load(tmp_path / "b")
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(InputError, match="c: "):
        load(tmp_path / "c")
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "d")


def test_layers_nested_without_end(tmp_path: Path) -> None:
    inner = '{"kind": "ReLU"}'
    deep = '{"kind": "Sequential", "layers": [' * 5000 + inner + "]}" * 5000
    save_file({}, tmp_path / "a", {"llmq.integer": f'{{"version": 1, "network": {deep}}}'})
    with pytest.raises(InputError, match="nested too deeply"):
        load(tmp_path / "a")
