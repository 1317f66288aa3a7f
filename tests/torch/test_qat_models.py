"""Whole models in training: norms, chains, shared and tied modules, and what users do with models."""

import copy
import inspect
import io
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmq.errors import UnsupportedError, UsageError
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import IntegerModule, convert, parameter_groups, prepare, prepare_qat, report, step_parameters
from llmq.torch.fake_layers import fake_layers
from llmq.torch.fold import Absorbed

STATIC = QuantScheme()
TWO_BITS = QuantScheme(
    replace(STATIC.weight, bits=2, range="full"), replace(STATIC.input or QuantSpec(), bits=2, observer="mse")
)
DYNAMIC = replace(STATIC, input=replace(STATIC.input, dynamic=True))
ONE_SCALE = replace(STATIC, weight=replace(STATIC.weight, bits=3, strategy="tensor", symmetric=False, range="full"))
WEIGHTS_ONLY = QuantScheme(TWO_BITS.weight, None)


class Net(nn.Module):
    """Norms, one ReLU for all, an addition, a functional pooling, two inputs and a keyword."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.one, self.norm_one = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False)
        self.two, self.norm_two = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x, shift=None, *, scale=1.0):
        x = self.stem(x)
        y = self.norm_two(self.two(self.relu(self.norm_one(self.one(x)))))
        x = self.relu(x + y)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.head(x) * scale
        return x if shift is None else x + shift


X = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(5))
Y = torch.randint(4, (12,), generator=torch.Generator().manual_seed(6))


def train(training, x=X, y=Y, steps=6, rate=1e-2):
    training.train()
    optimizer = torch.optim.AdamW(parameter_groups(training, lr=rate), rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(training(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def model():
    made = Net()
    for norm in (made.stem[1], made.norm_two):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2.0)
        with torch.no_grad():
            norm.weight.normal_()  # of either sign
            norm.weight[3] = 0.0
    return made


@pytest.mark.parametrize("scheme", [STATIC, TWO_BITS, DYNAMIC, ONE_SCALE], ids=["8", "2", "dynamic", "one scale"])
def test_norms_train_and_are_folded_without_a_trace(model, scheme):
    training = prepare_qat(model, scheme)
    assert isinstance(training.stem[1], Absorbed)
    losses = train(training, steps=12)
    assert losses[-1] < losses[0]
    assert training.stem[0].norm.num_batches_tracked == 12
    assert not torch.equal(training.stem[0].norm.running_mean, model.stem[1].running_mean)
    converted = convert(training)
    assert training.training
    assert not converted.training
    with torch.no_grad():
        assert torch.equal(converted(X), training.eval()(X))
        assert torch.equal(converted(X, X[:, 0, :1, :4].flatten(1), scale=2.0), training(X, X[:, 0, 0, :4], scale=2.0))
    kinds = [type(module).__name__ for module in converted.modules()]
    assert (kinds.count("IntegerModule"), kinds.count("Absorbed"), kinds.count("BatchNorm2d")) == (4, 4, 0)
    assert inspect.signature(converted.forward) == inspect.signature(model.forward)
    assert type(training) is type(converted) is Net


def test_weights_alone(model):
    training = prepare_qat(model, WEIGHTS_ONLY)
    train(training)
    with torch.no_grad():
        torch.testing.assert_close(convert(training)(X), training.eval()(X), rtol=1e-5, atol=1e-5)


def test_it_begins_where_the_model_is(model):
    training = prepare_qat(model.eval())
    assert not training.training
    expected = model(X)
    assert (training(X) - expected).square().mean() < 1e-3 * expected.square().mean()
    assert all(a is not b for a, b in zip(model.parameters(), training.parameters(), strict=False))


def test_scales_are_positive_but_on_grids_with_a_code_to_spare(model):
    full = replace(STATIC, weight=replace(STATIC.weight, bits=4, range="full"))
    for scheme, signed in ((STATIC, False), (ONE_SCALE, False), (full, True)):
        training = prepare_qat(model, scheme)
        train(training, steps=1)
        converted = convert(training)
        scales = [m.layer.weight.scale for m in converted.modules() if isinstance(m, IntegerModule)]
        assert any((scale < 0).any() for scale in scales) == signed
        assert torch.equal(converted(X), training.eval()(X))


def test_frozen_norms_are_folded_while_the_rest_trains(model):
    training = prepare_qat(model, TWO_BITS).train()
    training.stem[0].norm.eval()
    mean = training.stem[0].norm.running_mean.clone()
    training(X).sum().backward()
    assert torch.equal(training.stem[0].norm.running_mean, mean)
    assert training.stem[0].norm.weight.grad.abs().sum() > 0
    assert torch.equal(convert(training).stem(X), training.stem(X))


def test_norms_that_prepare_folded_stay_folded(model):
    prepared = prepare(model, TWO_BITS)
    with torch.no_grad():
        prepared(X)
    training = prepare_qat(prepared)
    assert training.stem[0].norm is None
    before = training.stem[0].latent.clone()
    losses = train(training, steps=10)
    assert losses[-1] < losses[0]
    assert not torch.equal(training.stem[0].latent, before)
    with torch.no_grad():
        assert torch.equal(convert(training)(X), training(X))


def test_what_is_frozen_stays_so(model):
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    training = prepare_qat(model, TWO_BITS)
    before = {name: p.clone() for name, p in training.stem.named_parameters()}
    train(training)
    moved = {name for name, p in training.stem.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= {"0.fake_weight.scale", "0.fake_input.scale", "0.fake_input.zero_point"}
    assert "0.fake_weight.scale" in moved


def test_states_come_back(model):
    training = prepare_qat(model, TWO_BITS)
    train(training)
    stream = io.BytesIO()
    torch.save(training.state_dict(), stream)
    stream.seek(0)
    other = prepare_qat(Net(), TWO_BITS)
    assert not other.head.seen
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert other.head.seen
    assert torch.equal(other.eval()(3 * X), training.eval()(3 * X))
    assert torch.equal(convert(other)(X), convert(training)(X))
    assert set(model.state_dict()) - set(training.state_dict()) == {
        f"{norm}.{key}" for norm in ("stem.1", "norm_one", "norm_two") for key in model.stem[1].state_dict()
    } - {"norm_one.weight", "norm_one.bias"}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_train_alone(model, copied):
    training = prepare_qat(model, TWO_BITS)
    train(training)
    before = training.eval()(X)
    other = copied(training)
    assert torch.equal(other(X), before)
    train(other)
    assert torch.equal(training(X), before)
    assert torch.equal(convert(other)(X), other.eval()(X))


def test_converted_models_are_finished_with_training(model):
    training = prepare_qat(model, TWO_BITS)
    train(training)
    converted = convert(training)
    before = converted(X)
    train(training)
    assert torch.equal(converted(X), before)
    assert not torch.equal(convert(training)(X), before)
    assert torch.equal(copy.deepcopy(converted)(X), before)


def test_a_module_with_two_names_and_one_that_is_called_twice():
    shared = nn.Linear(4, 4)
    training = prepare_qat(nn.Sequential(shared, shared, nn.ReLU(), nn.Linear(4, 4)), TWO_BITS)
    assert training[0] is training[1]
    assert list(fake_layers(training)) == ["0", "3"]
    x = torch.randn(5, 4)
    train(training, x, torch.tensor([0, 1, 2, 3, 0]))
    converted = convert(training)
    assert converted[0] is converted[1]
    assert torch.equal(converted(x), training(x))


def test_transformer_encoders():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    training = prepare_qat(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), TWO_BITS).train()
    x = torch.randn(2, 5, 16)
    training(x).square().sum().backward()
    assert training.layers[1].linear2.latent.grad.abs().sum() > 0
    training.eval()
    with torch.no_grad():
        torch.testing.assert_close(convert(training)(x), training(x), rtol=1e-4, atol=1e-4)


def test_a_head_that_reads_the_table():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids):
            return torch.nn.functional.linear(self.table(ids), self.table.weight)

    training, ids = prepare_qat(Tied(), TWO_BITS), torch.tensor([[1, 2, 8]])
    training(ids).sum().backward()
    assert training.table.latent.grad.abs().sum() > 0
    with torch.no_grad():
        assert torch.equal(convert(training)(ids), training(ids))


def test_overrides_stay_float(model):
    training = prepare_qat(model, DYNAMIC, overrides={"stem": None, "head": QuantSpec(bits=4, group_size=-1)})
    assert type(training.stem[0]) is nn.Conv2d
    assert type(training.stem[1]) is nn.BatchNorm2d
    assert list(fake_layers(training)) == ["one", "two", "head"]
    assert training.head.scheme.input is None
    train(training)
    converted = convert(training)
    assert type(converted.stem[1]) is nn.BatchNorm2d
    assert not converted.stem[1].training
    with torch.no_grad():
        torch.testing.assert_close(converted(X), training.eval()(X), rtol=1e-5, atol=1e-5)


class Sneaky(nn.Module):
    """With a mask, which a trace always has, nothing but the norm reads the convolution; without one, it is skipped."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x, mask=None):
        y = self.conv(x)
        return y if mask is None else self.norm(y) * mask


def test_a_path_that_the_trace_did_not_see():
    training, x = prepare_qat(Sneaky()), torch.randn(2, 1, 3, 3)
    with pytest.raises(UnsupportedError, match=r"^conv: called 1 times, but norm, which it takes over, 0 times$"):
        training(x)
    assert training(x, torch.ones(1)).shape == (2, 1, 3, 3)  # a call that went wrong leaves nothing behind
    converted = convert(training)
    assert converted.eval()(x, torch.ones(1)).shape == (2, 1, 3, 3)


def test_parts_of_a_model_may_be_called_alone(model):
    training = prepare_qat(model, TWO_BITS)
    training.stem[0](X)
    train(training)
    assert torch.equal(convert(training).stem(X), training.eval().stem(X))


def test_steps_can_be_trained_alone(model):
    training = prepare_qat(model, TWO_BITS)
    training(X)
    for parameter in training.parameters():
        parameter.requires_grad_(False)
    for parameter in step_parameters(training):
        parameter.requires_grad_(True)
    before = {name: p.clone() for name, p in training.named_parameters()}
    losses = train(training.eval(), steps=8)
    assert losses[-1] < losses[0]
    moved = {name for name, p in training.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("fake_" in name for name in moved)


def test_reports_compare_with_the_float_model_and_with_the_trained_one(model):
    training = prepare_qat(model, TWO_BITS)
    train(training, steps=20)
    converted = convert(training)
    exact = report(training, converted, X)
    assert [layer.name for layer in exact.layers] == ["stem.0", "one", "two", "head"]
    assert all(layer.nmse == layer.accumulated_nmse == 0 for layer in exact.layers)
    assert all(0 <= layer.saturation < 0.9 for layer in exact.layers)
    against_float = report(model, converted, X)
    assert all(layer.nmse > 1e-3 for layer in against_float.layers)
    assert training.training


def test_what_was_not_prepared_is_not_converted():
    with pytest.raises(UsageError, match="nothing here was prepared"):
        convert(nn.Sequential(nn.Linear(2, 2)))


def test_what_training_gains(model):
    """At two bits a few steps of training beat what calibration leaves."""
    with torch.no_grad():
        train_float = copy.deepcopy(model)
    train_float.train()
    optimizer = torch.optim.Adam(train_float.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(train_float(X), Y).backward()
        optimizer.step()
    calibrated = prepare(train_float, TWO_BITS)
    with torch.no_grad():
        calibrated(X)
    training = prepare_qat(train_float, TWO_BITS)
    train(training, steps=60)
    losses = [nn.functional.cross_entropy(convert(m)(X), Y).item() for m in (calibrated, training)]
    assert losses[1] < 0.5 * losses[0]


def test_torch_keeps_its_threads(model):
    """The kernels of weights and of integer layers start as many as there are cores."""
    torch.set_num_threads(1)
    training = prepare_qat(model, TWO_BITS)
    with torch.no_grad():
        training(X)
        convert(training)(X)
        convert(prepare(model, DYNAMIC))(X)
    assert torch.get_num_threads() == 1
