import re
from pathlib import Path

import torch
from torch import nn

import llmq.torch
from llmq.torch.prepare import calibrations

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_every_public_name_can_be_had():
    assert all(getattr(llmq.torch, name) is not None for name in llmq.torch.__all__)
    assert {"convert", "prepare", "report"} <= set(llmq.torch.__all__)


def test_what_the_page_shows_runs():
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    model = nn.Sequential()
    model.features, model.classifier = features, nn.Linear(8, 3)
    x = torch.randn(4, 1, 4, 4)
    names = {"model": model, "calibration_data": [(x, None)], "torch": torch}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert isinstance(names["converted"].classifier, llmq.torch.IntegerModule)
    assert list(calibrations(names["prepared"])) == ["features.0"]
