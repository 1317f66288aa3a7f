import numpy as np
import pytest
import torch
from torch import nn

from llmq.errors import UnsupportedError, UsageError
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import convert, prepare, report


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, 16)
        self.norm.running_mean.normal_()
        self.norm.weight.data.uniform_(0.5, 2)

    def forward(self, x):
        y = self.relu(self.norm(self.conv(x))).flatten(1)
        return self.fc(self.fc(y))


X = torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def converted(model, x, scheme=None, **how):
    prepared = prepare(model, scheme, **how)
    with torch.no_grad():
        prepared(x)
    return convert(prepared)


def test_against_whole_arrays():
    model = Net().eval()
    ours = converted(model, X)
    found = report(model, ours, [X[:5], (X[5:],)])
    assert [(e.name, e.kind, e.bits) for e in found.layers] == [("conv", "Conv2d", 8), ("fc", "Linear", 8)]
    with torch.no_grad():
        hidden = [model.relu(model.norm(model.conv(X))).flatten(1)]
        hidden += [model.fc(hidden[0])]
        hidden += [model.fc(hidden[1])]
        alone = [(hidden[0], ours.conv(X).flatten(1))]
        alone += [(torch.stack(hidden[1:]), torch.stack([ours.fc(hidden[0]), ours.fc(hidden[1])]))]
        one = ours.fc(alone[0][1])
        accumulated = [alone[0], (alone[1][0], torch.stack([one, ours.fc(one)]))]
    for error, (expected, got), (_, late) in zip(found.layers, alone, accumulated, strict=True):
        squares = expected.double().square().sum()
        nmse = ((got - expected).double().square().sum() / squares).item()
        assert error.nmse == pytest.approx(nmse, rel=1e-6)
        assert error.sqnr_db == pytest.approx(-10 * np.log10(nmse))
        assert error.max_error == (got - expected).abs().max()
        cosine = torch.nn.functional.cosine_similarity(expected.double().ravel(), got.double().ravel(), dim=0)
        assert error.cosine == pytest.approx(cosine.item())
        assert error.accumulated_nmse == pytest.approx(((late - expected).double().square().sum() / squares).item())
    assert found.layers[0].accumulated_nmse == found.layers[0].nmse
    assert 0 < found.layers[1].nmse < found.layers[1].accumulated_nmse < 1e-2


def test_saturation():
    """Inputs twice as large as those of the calibration: what lies beyond is clipped."""
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.linspace(-1, 1, 400).reshape(100, 4)
    ours = converted(model, x)
    assert report(model, ours, x).layers[0].saturation == 0
    assert report(model, ours, 2 * x).layers[0].saturation == pytest.approx(0.5, abs=0.01)
    assert report(model, ours, {"input": 2 * x}).layers[0].saturation == pytest.approx(0.5, abs=0.01)
    for scheme in (QuantSpec(bits=8, group_size=-1, signed_scale=False), DYNAMIC):
        assert report(model, converted(model, x, scheme), 2 * x).layers[0].saturation == 0


DYNAMIC = QuantScheme(input=QuantSpec(bits=8, strategy="token", symmetric=False, dynamic=True, scale_dtype="float32"))


def test_models_stay_as_they_are():
    model = Net().train()
    ours = converted(model, X)
    report(model, ours, X)
    report(model, ours, X)
    assert model.training
    for each in (*model.modules(), *ours.modules()):
        assert not each._forward_hooks
        assert not each._forward_pre_hooks


def test_the_table():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    ids = torch.tensor([[0, 4], [2, 2]])
    found = report(model, converted(model, ids), ids)
    lines = str(found).splitlines()
    assert " ".join(lines[0].split()) == "layer kind bits NMSE SQNR dB cosine max error saturation accumulated NMSE"
    assert len({line.index("%") for line in lines[1:]}) == 1
    assert [line.split()[:3] for line in lines[1:]] == [["0", "Embedding", "8"], ["1", "Linear", "8"]]
    assert found.to_json()[1]["nmse"] == found.layers[1].nmse
    assert set(found.to_json()[0]) >= {"name", "kind", "bits", "nmse", "sqnr_db", "cosine", "max_error", "saturation"}


def test_models_that_do_not_belong_together():
    ours = converted(nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2))
    with pytest.raises(UsageError, match="0: is in the converted model only"):
        report(nn.Sequential(nn.Conv1d(1, 1, 1)), ours, torch.randn(3, 2))
    with pytest.raises(UsageError, match="0: is in the converted model only"):
        report(nn.Sequential(nn.Linear(2, 3)), ours, torch.randn(3, 2))
    with pytest.raises(UsageError, match="inputs hold nothing to run"):
        report(nn.Sequential(nn.Linear(2, 2)), ours, [])
    with pytest.raises(UsageError, match="nothing here was converted"):
        report(Net(), Net(), X)


def test_a_layer_that_only_the_float_model_calls():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            y = self.one(x)
            return self.two(y) if isinstance(self.one, nn.Linear) else y

    model, x = Choosing(), torch.randn(3, 2)
    with pytest.raises(UnsupportedError, match=r"^two: was called less often after conversion$"):
        report(model, converted(model, x), x)
