import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import prepare
from llmq.torch.fold import Absorbed
from llmq.torch.prepare import calibrations

DYNAMIC = replace(QuantScheme(), input=replace(QuantScheme().input, dynamic=True))


def small():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_the_model_computes_in_eval_mode(training):
    model = small().train(training)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model)
    assert isinstance(prepared[1], Absorbed)
    expected = copy.deepcopy(model).eval()(X)
    assert not prepared.training
    assert (prepared(X) - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert model.training is training
    assert all(torch.equal(a, before[key]) for key, a in model.state_dict().items())


def test_layers_see_their_inputs():
    prepared = prepare(small())
    prepared(X[:5])
    prepared(X[5:])
    low, high = calibrations(prepared)["0"].observer.range()
    assert (float(low), float(high)) == (float(X.min()), float(X.max()))
    with torch.no_grad():
        hidden = prepared[2](prepared[0](X))
    low, high = calibrations(prepared)["5"].observer.range()
    assert float(high) == pytest.approx(float(hidden.max()), rel=1e-6)


def test_what_needs_no_range_is_not_observed():
    dynamic, weight_only = prepare(small(), DYNAMIC), prepare(small(), QuantSpec(bits=4, group_size=-1))
    for prepared in (dynamic, weight_only):
        assert [c.observer for c in calibrations(prepared).values()] == [None, None]
    assert [c.scheme.input for c in calibrations(weight_only).values()] == [None, None]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
        self.encoder_head = nn.Linear(3, 2)
        self.alias = self.encoder["first"]

    def forward(self, x):
        return self.encoder_head(self.encoder["second"](self.encoder["first"](x)))


@pytest.mark.parametrize(
    ("overrides", "quantized"),
    [
        ({}, ["encoder.first", "encoder.second", "encoder_head"]),
        ({"encoder": None}, ["encoder_head"]),
        ({"encoder": None, "encoder.second": QuantSpec(bits=4)}, ["encoder.second", "encoder_head"]),
        ({"alias": None}, ["encoder.second", "encoder_head"]),
        ({"": None, "encoder_head": DYNAMIC}, ["encoder_head"]),
    ],
)
def test_overrides(overrides, quantized):
    found = calibrations(prepare(Nested(), overrides=overrides))
    assert list(found) == quantized
    given = {name: how for name, how in overrides.items() if how is not None}
    for name, calibration in found.items():
        expected = given.get(name, QuantScheme())
        assert (calibration.scheme if isinstance(expected, QuantScheme) else calibration.scheme.weight) == expected


@pytest.mark.parametrize("name", ["encode", "encoder.third", "encoder.first.weight"])
def test_overrides_must_name_modules(name):
    with pytest.raises(UsageError, match=f"override '{name}' is no module of the model"):
        prepare(Nested(), overrides={name: None})


def test_overrides_must_name_something_to_quantize():
    with pytest.raises(UsageError, match="override '2' has nothing to quantize"):
        prepare(small(), overrides={"2": None})


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "1: cannot pad so.*'zeros', found 'reflect'"),
        (nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), "1: cannot pad so.*'zeros', found 'circular'"),
        (nn.Conv1d(1, 1, 2, padding="same"), "1: padding 'same' pads one side more"),
        (nn.Conv2d(1, 1, (3, 4), padding="same"), "1: padding 'same' pads one side more"),
        (nn.Embedding(3, 2, max_norm=1.0), "1: max_norm changes the rows"),
        (nn.Linear(3, 2, device="meta"), "1: a weight on the meta device cannot be quantized"),
    ],
)
def test_refused_by_name(module, complaint):
    model = nn.Sequential(nn.Linear(2, 2), module)
    with pytest.raises(UnsupportedError, match=complaint) as caught:
        prepare(model)
    assert "'1': None" in caught.value.hint
    assert list(calibrations(prepare(model, overrides={"1": None}))) == ["0"]


def test_integers_do_not_flow_between_torch_modules():
    scheme = replace(QuantScheme(), output=QuantScheme().input)
    with pytest.raises(UnsupportedError, match="5: integer outputs cannot go on between torch modules"):
        prepare(small(), overrides={"5": scheme})


def test_unknown_observers():
    scheme = replace(QuantScheme(), input=replace(QuantScheme().input, observer="guess"))
    with pytest.raises(UsageError, match=r"^0: unknown observer \(expected 'minmax'.*, found 'guess'\)$"):
        prepare(small(), scheme)


def test_prepared_models_are_not_prepared_again():
    with pytest.raises(UsageError, match="prepared already"):
        prepare(prepare(small()))


def test_nothing_to_quantize():
    for model in (nn.ReLU(), nn.Sequential(nn.ConvTranspose2d(1, 1, 2)), nn.MultiheadAttention(4, 2)):
        with pytest.raises(UnsupportedError, match="no layer to quantize"):
            prepare(model)


def test_calibration_data_with_nan_names_the_layer():
    prepared = prepare(small())
    bad = X.clone()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^0: "):
        prepared(bad)


def test_a_copy_of_a_prepared_model_has_its_own_observers():
    prepared = prepare(small())
    other = copy.deepcopy(prepared)
    other(X)
    assert calibrations(other)["0"].calls["0"] == 1
    assert calibrations(prepared)["0"].calls["0"] == 0


def test_the_signature_stays():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x, /, mask=None, *, scale: float = 1.0):
            y = self.fc(input=x) * scale
            return y if mask is None else y * mask

    prepared = prepare(Attending())
    assert inspect.signature(prepared.forward) == inspect.signature(Attending().forward)
    x = torch.randn(3, 2)
    with torch.no_grad():
        assert torch.equal(prepared(x, scale=2.0), prepared(x) * 2)
        assert torch.equal(prepared(x, torch.zeros(3, 1)), torch.zeros(3, 2))
    assert np.ptp(calibrations(prepared)["fc"].observer.range()) > 0


@pytest.mark.parametrize("arguments", [{"scheme": "int8"}, {"overrides": {"": 8}}])
def test_what_is_no_scheme(arguments):
    with pytest.raises(UsageError, match=r"unknown scheme .*expected QuantScheme or QuantSpec, found"):
        prepare(nn.Linear(2, 2), **arguments)
