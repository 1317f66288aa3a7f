"""Training for integers: what is trained is what the converted layer computes, to the last bit where sums are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmq.errors import InputError, UsageError
from llmq.integer import ActivationGrid
from llmq.learn import found_steps
from llmq.learn.rounding import straight
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import IntegerModule, convert, prepare, prepare_qat
from llmq.torch.fake_layers import fake_layers
from llmq.torch.prepare import calibrations

STATIC = QuantScheme()


def weights(**changes):
    return replace(STATIC, weight=replace(STATIC.weight, **{"range": "full"} | changes))


def inputs(**changes):
    return replace(STATIC, input=replace(STATIC.input, **changes))


SCHEMES = {
    "default": STATIC,
    **{f"weights of {bits} bits": weights(bits=bits) for bits in range(1, 9)},
    **{f"asymmetric weights of {bits} bits": weights(bits=bits, symmetric=False) for bits in (1, 2, 4, 8)},
    **{f"narrow weights of {bits} bits": weights(bits=bits, range="narrow") for bits in (2, 3)},
    "signed scales": weights(bits=2, signed_scale=True),
    "scales in bfloat16": weights(bits=3, scale_dtype="bfloat16"),
    "one scale": weights(bits=4, strategy="tensor"),
    "signs, one scale": weights(bits=1, strategy="tensor"),
    "asymmetric, one scale": weights(bits=3, strategy="tensor", symmetric=False),
    **{f"inputs of {bits} bits": inputs(bits=bits) for bits in range(2, 8)},
    "symmetric inputs": inputs(bits=6, symmetric=True),
    "narrow inputs": inputs(bits=3, symmetric=True, range="narrow"),
    "dynamic": inputs(dynamic=True),
    "dynamic symmetric": inputs(bits=5, symmetric=True, dynamic=True),
    "by row": inputs(bits=4, dynamic=True, strategy="token"),
    "symmetric by row": inputs(symmetric=True, dynamic=True, strategy="token"),
    "weights only": replace(weights(bits=2), input=None),
}

LAYERS = {
    "linear": (lambda: nn.Linear(12, 5), (7, 12)),
    "linear of many axes": (lambda: nn.Linear(12, 5, bias=False), (2, 3, 12)),
    "linear of one row": (lambda: nn.Linear(12, 5), (12,)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "conv1d in groups": (lambda: nn.Conv1d(4, 4, 3, dilation=2, groups=2, bias=False), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 8, 7)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=4), (1, 4, 6, 6)),
    "conv2d of one image": (lambda: nn.Conv2d(3, 4, 1), (3, 5, 6)),
}


def train(training, x, steps=4, rate=0.02):
    """Train a little, so that nothing is where it began."""
    training.train()
    optimizer = torch.optim.Adam(training.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        y = training(x)
        (y - torch.linspace(-1, 1, y.numel()).reshape(y.shape)).square().mean().backward()
        optimizer.step()
    return training


EVERY = [
    *((layer, name) for layer in ("linear", "conv1d", "conv2d") for name in SCHEMES),
    *((layer, name) for layer in LAYERS for name in ("default", "weights of 2 bits", "by row", "weights only")),
]


@pytest.mark.parametrize(("layer", "name"), list(dict.fromkeys(EVERY)))
def test_what_trains_computes_what_the_integers_will(layer, name):
    (make, shape), scheme = LAYERS[layer], SCHEMES[name]
    training = train(prepare_qat(make(), scheme), torch.randn(shape))
    x = 1.5 * torch.randn(shape)
    y, converted = training(x), convert(training)
    expected = converted(x)
    assert isinstance(converted, IntegerModule)
    assert y.requires_grad
    assert torch.equal(converted.weight, training.weight)
    if scheme.input is not None:
        assert torch.equal(y, expected)  # sums of whole numbers below 2**24
    else:
        products = training.weight.abs().flatten(1).sum(1).max() * x.abs().max() + 1
        assert (y - expected).abs().max() <= 2.0**-22 * products


GROUPED = QuantSpec(bits=3, group_size=4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("given", [None, STATIC.input, SCHEMES["dynamic"].input, SCHEMES["by row"].input], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_in_groups(bits, given, symmetric):
    scheme = QuantScheme(replace(GROUPED, bits=bits, symmetric=symmetric), given)
    training = train(prepare_qat(nn.Linear(12, 5), scheme), torch.randn(7, 12))
    x = torch.randn(3, 7, 12)
    converted = convert(training)
    assert len(converted.layer.weight.parts) == 3
    assert torch.equal(converted.weight, training.weight)
    products = training.weight.abs().sum(1).max() * x.abs().max() + 1
    assert (training(x) - converted(x)).abs().max() <= 2.0**-22 * products


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_embeddings(bits, strategy):
    module = nn.Embedding(11, 8, padding_idx=0, sparse=True)
    training = prepare_qat(module, QuantSpec(bits=bits, strategy=strategy, group_size=4))
    ids = torch.tensor([[1, 10, 0], [5, 5, 2]])
    optimizer = torch.optim.SGD(training.parameters(), 0.5)
    training(ids).square().mean().backward()
    assert not training.latent.grad[0].any()
    optimizer.step()
    assert torch.equal(training(ids), convert(training)(ids))


def test_the_learned_grids_are_kept():
    training = train(prepare_qat(nn.Linear(6, 4), weights(bits=3, symmetric=False)), torch.randn(9, 6))
    scale, zero_point = (t.detach().numpy() for t in training.fake_weight.grid())
    s_x, z_x = (t.item() for t in training.fake_input.grid())
    layer = convert(training).layer
    np.testing.assert_array_equal(layer.weight.scale, scale)
    np.testing.assert_array_equal(layer.weight.parts[0].zero_point, zero_point[:, 0])
    assert (float(layer.grids.input.scale), int(layer.grids.input.zero_point) + 128) == (s_x, z_x)
    low, high = convert(training).input_range
    assert (float(low), float(high)) == pytest.approx((-z_x * s_x, (255 - z_x) * s_x))


@pytest.mark.parametrize("name", ["default", "weights of 1 bits", "weights of 2 bits", "inputs of 3 bits", "dynamic"])
@pytest.mark.parametrize("layer", ["linear of many axes", "conv1d in groups"])
def test_gradients_are_those_of_fake_quantization(layer, name):
    make, shape = LAYERS[layer]
    training, x = prepare_qat(make(), SCHEMES[name]), torch.randn(shape)
    upstream = torch.randn(training(x).shape)

    def plain(x):
        if training.fake_input is not None:
            return training._product(training.fake_input(x), training.weight, None)
        steps, scale = found_steps(x, training.scheme.input, training.axes)
        return training._product(straight(x, steps * scale), training.weight, None)

    found = []
    for forward in (plain, training):
        given = x.clone().requires_grad_()
        training.zero_grad()
        (forward(given) * upstream).sum().backward()
        found.append([given.grad, *(p.grad for p in training.parameters())])
    for expected, ours in zip(*found, strict=True):
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["default", "weights of 1 bits", "weights of 2 bits", "by row", "dynamic symmetric"])
def test_rows_that_are_tiny_beside_their_bias(name):
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1] = 0.0
        layer.weight[2] *= 1e-30
        layer.bias[:] = torch.tensor([0.1, 1e3, 1e6, -1e9])
    training, x = prepare_qat(layer, SCHEMES[name]), torch.randn(5, 6)
    training(x)
    assert torch.equal(training(x), convert(training)(x))
    # Signs cannot be zero.
    rows = slice(2 if training.scheme.weight.bits == 1 else 1, None)
    assert torch.allclose(training(x)[:, rows], layer.bias[rows].expand(5, -1), rtol=1e-6)


def test_zeros_come_in():
    for name in ("default", "dynamic", "by row", "symmetric by row"):
        training = prepare_qat(nn.Linear(6, 4), SCHEMES[name])
        x = torch.randn(5, 6)
        x[2] = 0.0
        for given in (x, torch.zeros(3, 6), x[:0]):
            training(given)
            assert torch.equal(training(given), convert(training)(given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).to(dtype), torch.randn(3, 6, dtype=dtype)
    training = train(prepare_qat(model, weights(bits=4)), x)
    y = training(x)
    assert y.dtype == dtype
    assert torch.equal(y, convert(training)(x))


def test_static_ranges_begin_with_the_first_inputs():
    scheme = inputs(bits=4, observer="mse")
    training, x = prepare_qat(nn.Linear(6, 4), scheme), torch.randn(50, 6)
    assert not training.seen
    with torch.no_grad():
        training(x[:0])  # nothing to see
        assert not training.seen
        training(x)
        found = training.fake_input.scale.item()
        training(10 * x)
    observer = calibrations(calibrated(nn.Linear(6, 4), scheme, x))[""].observer
    grid = ActivationGrid.of(scheme.input, observer.range())
    assert training.seen
    assert training.fake_input.scale.item() == found == float(grid.scale)
    assert training.fake_input.zero_point.item() == int(grid.zero_point) + 8


def calibrated(model, scheme, x):
    prepared = prepare(model, scheme)
    with torch.no_grad():
        prepared(x)
    return prepared


def test_calibrated_models_begin_with_what_was_found():
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(50, 6)
    prepared = calibrated(model, inputs(bits=5), x)
    training = prepare_qat(prepared)
    for name, calibration in calibrations(prepared).items():
        layer = fake_layers(training)[name]
        grid = ActivationGrid.of(calibration.scheme.input, calibration.observer.range())
        assert layer.seen
        assert layer.fake_input.scale.item() == float(grid.scale)
    before = convert(prepared)(x)
    train(training, 3 * x)
    assert torch.equal(convert(prepared)(x), before)  # nobody watches the copy for it
    assert torch.equal(training(x), convert(training)(x))


def test_calibrated_models_that_saw_nothing_begin_with_the_first_inputs():
    training = prepare_qat(prepare(nn.Linear(6, 4)))
    assert not training.seen
    assert training(torch.randn(3, 6)).shape == (3, 4)
    assert training.seen


def test_static_inputs_must_be_seen():
    with pytest.raises(UsageError, match=r"^0: has not seen any input, and its range is static$"):
        convert(prepare_qat(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))))


def test_the_first_inputs_must_be_finite():
    training = prepare_qat(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"^0: "):
        training(torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize(
    ("make", "scheme", "complaint"),
    [
        (lambda: nn.Conv2d(4, 3, 2), QuantSpec(bits=4, group_size=8), "0: a weight .* in one group is needed"),
        (lambda: nn.Conv1d(4, 3, 2), QuantSpec(bits=4, group_size=4), "0: a weight .* in one group is needed"),
        (lambda: nn.Linear(70_000, 1), STATIC, "0: 32-bit sums hold at most"),
        (lambda: nn.Linear(60_000, 1), STATIC, "0: 32-bit sums do not hold 60000 products of 8 bits and a bias"),
        (lambda: nn.Linear(0, 3), STATIC, "0: a weight of shape .* is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_could_not_be_converted_is_refused_before_training(make, scheme, complaint):
    with pytest.raises(InputError, match=complaint):
        prepare_qat(nn.Sequential(make()), scheme)


def test_weights_must_be_finite():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^0: .*NaN or infinity"):
        prepare_qat(nn.Sequential(layer))


def test_who_is_prepared_is_prepared():
    model = nn.Linear(2, 2)
    for again in (prepare_qat, prepare):
        with pytest.raises(UsageError, match="prepared already"):
            again(prepare_qat(model))
    with pytest.raises(UsageError, match="has its schemes already"):
        prepare_qat(prepare(model), STATIC)
    with pytest.raises(UsageError, match="has its schemes already"):
        prepare_qat(prepare(model), overrides={"": None})
