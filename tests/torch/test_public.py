import doctest
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import llmq.torch
from llmq.torch.fake_layers import fake_layers
from llmq.torch.prepare import calibrations

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_every_public_name_can_be_had():
    assert all(getattr(llmq.torch, name) is not None for name in llmq.torch.__all__)
    assert {"convert", "prepare", "prepare_qat", "quantized_tensors", "report"} <= set(llmq.torch.__all__)


def test_what_the_page_shows_runs():
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    model = nn.Sequential()
    model.features, model.classifier = features, nn.Linear(8, 3)
    x = torch.randn(4, 1, 4, 4)
    data = {"calibration_data": [(x, None)], "training_data": [(x, torch.tensor([0, 1, 2, 0]))]}
    names = {"model": model, "torch": torch, "tokens": torch.tensor([[1, 5, 3]]), "sizes": SIZES, **data}
    first, second, third, fourth = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in (first, second):
        exec(block, names)
    assert isinstance(names["converted"].classifier, llmq.torch.IntegerModule)
    assert list(calibrations(names["prepared"])) == ["features.0"]
    exec(third, names)
    assert {name: layer.scheme.weight.bits for name, layer in fake_layers(names["training"]).items()} == {
        "features.0": 2,
        "classifier": 4,
    }
    assert torch.equal(names["converted"](x), names["training"].eval()(x))
    pytest.importorskip("transformers")
    exec(fourth, names)
    assert len(names["tensors"]) == 7
    assert "model.layers.0.mlp.up_proj.weight" in names["tensors"]


def test_examples():
    found = doctest.testmod(llmq.torch.qat)
    assert (found.attempted > 2, found.failed) == (True, 0)
