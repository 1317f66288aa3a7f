"""A converted module as a network without torch computes the same, and what it cannot express is named."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from llmq.errors import UnsupportedError
from llmq.integer import FloatConv2d, FloatLinear, Residual, Sequential, load, save
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import convert, prepare, to_integer


def _converted(model: nn.Module, x: torch.Tensor, scheme: Any = None, **options: Any) -> nn.Module:
    prepared = prepare(model, scheme, **options)
    with torch.no_grad():
        prepared(x)
    return convert(prepared)


def _agrees(converted: nn.Module, x: torch.Tensor) -> Sequential:
    network = to_integer(converted)
    with torch.no_grad():
        expected = converted(x).numpy()
    found = network(x.numpy())
    assert isinstance(found, np.ndarray)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    return network


class Block(nn.Module):
    """A residual block; `kind` is how its branches are put together."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind != "twice":
            self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            self.second = nn.Conv2d(4, 4, 3, padding="same", bias=False)
        if kind in ("shortcut", "nested"):
            self.shortcut = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "twice":
            return (x + x).relu_()
        y = self.second(self.first(x))
        if self.kind == "identity":
            return torch.relu(x + y)
        if self.kind == "shortcut":
            y += self.shortcut(x)
            return functional.relu(y)
        return torch.add(y + self.second(y), self.shortcut(x).add(x))


@pytest.mark.parametrize("kind", ["identity", "shortcut", "nested", "twice"])
def test_sums_of_branches_become_blocks(kind: str) -> None:
    x = torch.randn(3, 4, 6, 5)
    model = nn.Sequential(Block(kind), Block("identity"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network = _agrees(_converted(model, x), x)
    assert isinstance(network.layers[0], Residual)


class Functional(nn.Module):
    """What modules do, by functions and methods."""

    def __init__(self, flat: str) -> None:
        super().__init__()
        self.flat = flat
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4 * 2 * 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x), inplace=True), 2, stride=2)
        x = functional.dropout(functional.avg_pool2d(x, kernel_size=(2, 2), stride=1), training=False)
        if self.flat == "function":
            x = torch.flatten(x, 1)
        elif self.flat == "view":
            x = x.view(x.size(0), -1).relu_()
        elif self.flat == "shape":
            x = x.reshape(x.shape[0], -1)
        else:
            x = x.flatten(start_dim=1)
        return self.linear(x)


@pytest.mark.parametrize("flat", ["function", "view", "shape", "method"])
def test_functions_and_methods_become_layers(flat: str) -> None:
    x = torch.randn(3, 1, 9, 9)
    _agrees(_converted(Functional(flat), x), x)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(6, 3), (4, 6)),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Identity(), nn.Linear(8, 3)), (2, 5, 6)),
        (nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, groups=2), nn.BatchNorm1d(6), nn.ReLU()), (2, 4, 9)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1)), (2, 2, 9, 8)),
    ],
    ids=["linear", "linears", "conv1d", "pools"],
)
def test_modules_become_layers(model: nn.Module, shape: tuple[int, ...]) -> None:
    _agrees(_converted(model, torch.randn(shape)), torch.randn(shape))


def test_a_layer_that_stands_in_two_places_is_read_in_both() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert len(_agrees(_converted(nn.Sequential(layer, nn.ReLU(), layer), x), x).layers) == 3


def test_embeddings() -> None:
    model, ids = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 3)), torch.tensor([[0, 6, 2]])
    _agrees(_converted(model, ids), ids)


def test_what_stayed_float_is_kept_float() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same", bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(2, 2, 4, 4)
    network = _agrees(_converted(model, x, overrides={"0": None}), x)
    assert isinstance(network.layers[0], FloatConv2d)
    network = _agrees(_converted(model, x, overrides={"3": None}), x)
    assert isinstance(network.layers[-1], FloatLinear)


def test_networks_can_be_saved(tmp_path: Any) -> None:
    x = torch.randn(3, 6)
    weights = QuantScheme(QuantSpec(bits=4, group_size=3), None)
    network = to_integer(_converted(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), x, weights))
    save(network, tmp_path / "network.safetensors")
    found: Any = load(tmp_path / "network.safetensors")
    np.testing.assert_array_equal(found(x.numpy()), network(x.numpy()))


class Calls(nn.Module):
    """A linear, and then a function of its result."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.linear(x))


def _branching(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (torch.sigmoid, "sigmoid: sigmoid has no integer layer"),
        (lambda x: x + 1.0, "add: only two branches"),
        (lambda x: torch.add(x, x, alpha=2), "add: only two branches"),
        (lambda x: x.view(-1, 2), "view: view has no integer layer"),
        (lambda x: x.relu_() + x, "relu_: overwrites in place"),
        (lambda x: x.flatten(1).relu_() + x, "relu_: overwrites in place"),
        (lambda x: functional.relu(functional.dropout(x, training=False), True) + x, "relu: overwrites in place"),
        (lambda x: functional.dropout(x), "dropout: .*eval"),
        (lambda x: x.flatten(0, 1), "flatten: .*last axis"),
        (lambda x: (x, x), "one tensor out"),
        (lambda x: torch.cat((x, x)), "cat: cat has no integer layer"),
        (_branching, "Calls: torch.fx cannot trace"),
    ],
)
def test_what_no_layer_expresses_is_named(function: Any, message: str) -> None:
    converted = _converted(Calls(function), torch.randn(2, 4))
    with pytest.raises(UnsupportedError, match=message):
        to_integer(converted)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.GELU(), "1: GELU"),
        (nn.MaxPool2d(2, ceil_mode=True), "1: .*ceil_mode"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "1: .*padding counted"),
        (nn.AdaptiveAvgPool2d(2), "1: output_size must be 1"),
    ],
)
def test_modules_that_no_layer_expresses_are_named(module: nn.Module, message: str) -> None:
    converted = _converted(nn.Sequential(nn.Conv2d(1, 2, 1), module), torch.randn(1, 1, 5, 5))
    with pytest.raises(UnsupportedError, match=message):
        to_integer(converted)


def test_several_inputs_and_training_are_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + y

    prepared = prepare(Two())
    prepared(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(UnsupportedError, match="one tensor in"):
        to_integer(convert(prepared))
    converted = _converted(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), torch.randn(2, 4))
    with pytest.raises(UnsupportedError, match=r"1: dropout .*eval"):
        to_integer(converted.train())
