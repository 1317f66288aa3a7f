import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmq import integer
from llmq.errors import UnsupportedError, UsageError
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import IntegerModule, convert, prepare
from llmq.torch.prepare import calibrations

STATIC = QuantScheme()
DYNAMIC = replace(STATIC, input=replace(STATIC.input, dynamic=True))
SCHEMES = {
    "static": STATIC,
    "dynamic": DYNAMIC,
    "dynamic, a range for each row": replace(STATIC, input=replace(STATIC.input, dynamic=True, strategy="token")),
    "symmetric inputs of 6 bits": replace(STATIC, input=replace(STATIC.input, bits=6, symmetric=True)),
    "one range for a weight of 4 bits": replace(STATIC, weight=replace(STATIC.weight, bits=4, strategy="tensor")),
    "asymmetric weights": replace(STATIC, weight=replace(STATIC.weight, symmetric=False, range="full")),
    "one bit": replace(STATIC, weight=replace(STATIC.weight, bits=1, range="full")),
    "weights only": QuantScheme(weight=STATIC.weight, input=None),
}


def conv_settings(module):
    return {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}


LAYERS = [
    (lambda: nn.Linear(12, 5), (7, 12)),
    (lambda: nn.Linear(12, 5, bias=False), (2, 3, 12)),
    (lambda: nn.Linear(12, 5), (12,)),
    (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    (lambda: nn.Conv1d(4, 4, 3, dilation=2, groups=2, bias=False), (2, 4, 9)),
    (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 8, 7)),
    (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (1, 4, 6, 6)),
    (lambda: nn.Conv2d(3, 4, 1), (3, 5, 6)),  # one image without a batch
]


def calibrated(model, scheme, x):
    prepared = prepare(model, scheme)
    with torch.no_grad():
        prepared(x)
    return prepared


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_a_converted_module_is_the_integer_layer(make, shape, scheme):
    module, x = make(), torch.randn(shape)
    prepared = calibrated(module, scheme, x)
    converted = convert(prepared)
    observer = calibrations(prepared)[""].observer
    settings = {} if isinstance(module, nn.Linear) else conv_settings(module)
    layer = getattr(integer, type(module).__name__).quantize(
        module.weight.detach().numpy(),
        None if module.bias is None else module.bias.detach().numpy(),
        scheme,
        input_range=None if observer is None else observer.range(),
        **settings,
    )
    batch = x.numpy() if x.dim() >= module.weight.dim() else x.numpy()[None]
    expected = layer(batch).reshape(module(x).shape)
    y = converted(x)
    assert isinstance(converted, IntegerModule)
    assert (y.dtype, y.requires_grad) == (torch.float32, False)
    np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_embeddings(bits):
    module = nn.Embedding(11, 6, padding_idx=0)
    scheme = QuantSpec(bits=bits, strategy="channel", signed_scale=False, scale_dtype="float32")
    converted = convert(prepare(module, scheme))
    ids = torch.tensor([[1, 10, 0], [5, 5, 2]])
    layer = integer.Embedding.quantize(module.weight.detach().numpy(), scheme)
    assert torch.equal(converted(ids), torch.from_numpy(layer(ids.numpy())))
    assert (converted(ids) - module(ids)).abs().max() <= 1.001 * module.weight.abs().max() / (
        2**bits - 1
    )  # half a step
    assert converted.padding_idx == 0


def close(model, converted, *args, tolerance=0.05, **kwargs):
    with torch.no_grad():
        expected, y = model(*args, **kwargs), converted(*args, **kwargs)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    return (y - expected).square().sum() <= tolerance**2 * expected.square().sum()


class Residual(nn.Module):
    """Norms, one ReLU for all, an addition, a functional pooling, two inputs and a keyword."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.one, self.norm_one = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
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


def trained_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def test_a_residual_network():
    model, x, shift = trained_norms(Residual()), torch.randn(4, 3, 6, 6), torch.randn(4, 4)
    converted = convert(calibrated(model, STATIC, x))
    assert inspect.signature(converted.forward) == inspect.signature(model.forward)
    assert type(converted) is Residual
    assert close(model, converted, x)
    assert close(model, converted, x=x, shift=shift, scale=3.0)
    kinds = [type(module).__name__ for _, module in converted.named_modules()]
    assert kinds.count("IntegerModule") == 4
    assert kinds.count("Absorbed") == 4  # three norms and the ReLU that only the stem uses
    assert "BatchNorm2d" not in kinds
    assert (converted.stem(x) >= 0).all()


def test_every_way_of_calling():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.table = nn.Embedding(9, 6), nn.Linear(6, 6)
            self.mix = nn.ModuleDict({"a": nn.Linear(12, 3), "b": nn.Sequential(nn.Linear(12, 3), nn.ReLU())})

        def forward(self, ids, extra, way="a"):
            x = torch.cat([self.table(self.words(ids)), self.table(extra)], -1)  # one module, two inputs
            return {"y": self.mix[way](x)}

    model = Several()
    ids, extra = torch.randint(9, (2, 5)), 3 * torch.randn(2, 5, 6)
    prepared = prepare(model)
    with torch.no_grad():
        prepared(ids, extra)
        prepared(ids, extra=extra, way="b")
        converted = convert(prepared)
        for way in "ab":
            expected, y = model(ids, extra, way)["y"], converted(ids, extra=extra, way=way)["y"]
            assert (y - expected).square().mean() <= 1e-3 * expected.square().mean()
    low, high = calibrations(prepared)["table"].observer.range()
    assert float(high) == float(extra.max())
    assert float(low) == float(extra.min())


def test_a_module_with_two_names_is_converted_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, shared, nn.Linear(4, 2))
    x = torch.randn(5, 4)
    converted = convert(calibrated(model, STATIC, x))
    assert isinstance(converted[0], IntegerModule)
    assert converted[0] is converted[1]
    assert close(model, converted, x)


def test_transformer_encoders_call_our_layers():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16)
    prepared = calibrated(model, STATIC, x)
    converted = convert(prepared)
    assert [c.calls[name] for name, c in calibrations(prepared).items()] == [1] * 4
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        plain, masked = converted(x), converted(x, src_key_padding_mask=mask)
        assert not torch.equal(plain, model(x))
        assert (plain - model(x)).abs().max() < 0.1
        assert (masked[0] - plain[0]).abs().max() < 0.1
    assert isinstance(converted.layers[1].linear2, IntegerModule)


def test_overrides_stay_float():
    model, x = trained_norms(Residual()), torch.randn(4, 3, 6, 6)
    prepared = prepare(model, DYNAMIC, overrides={"stem": None, "head": QuantSpec(bits=4, group_size=-1)})
    converted = convert(prepared)
    assert isinstance(converted.stem[0], nn.Conv2d)
    assert isinstance(converted.stem[1], nn.BatchNorm2d)
    assert isinstance(converted.head, IntegerModule)
    assert torch.equal(converted.stem(x), model.stem(x))


def test_static_inputs_need_calibration():
    prepared = prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(UsageError, match=r"^0: has not seen any input, and its range is static$"):
        convert(prepared)


def test_only_prepared_models_are_converted():
    with pytest.raises(UsageError, match="nothing here was prepared"):
        convert(nn.Linear(2, 2))


def test_a_prepared_model_can_be_shown_more():
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    prepared = calibrated(model, STATIC, x)
    first = convert(prepared)
    before = first(10 * x)
    with torch.no_grad():
        prepared(10 * x)
    second = convert(prepared)
    assert torch.equal(first(10 * x), before)
    assert close(model, second, 10 * x)
    assert not close(model, first, 10 * x, tolerance=0.2)


def test_a_path_that_the_trace_did_not_see():
    """With a mask, which a trace always has, nothing but the norm reads the convolution; without one, it is skipped."""

    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x, mask=None):
            y = self.conv(x)
            return y if mask is None else self.norm(y) * mask

    model, x = Sneaky().eval(), torch.randn(1, 1, 3, 3)
    prepared = calibrated(model, STATIC, x)
    with pytest.raises(UnsupportedError, match=r"^conv: called 1 times, but norm, which it takes over, 0 times$"):
        convert(prepared)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back_as_they_went_in(dtype):
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).to(dtype), torch.randn(3, 6, dtype=dtype)
    converted = convert(calibrated(model, STATIC, x))
    assert close(model, converted, x)


def test_layouts_and_gradients():
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
    converted = convert(calibrated(model, STATIC, x))
    y = converted(x)
    assert torch.equal(converted(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(converted(x.clone().requires_grad_()), y)
    assert torch.equal(copy.deepcopy(converted)(x), y)
    assert converted(x[:0]).shape == (0, 4, 3, 3)


def test_it_looks_like_the_layer_it_stands_for():
    converted = convert(prepare(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Linear(3, 2)), DYNAMIC))
    assert (converted[0].in_channels, converted[0].stride, converted[2].out_features) == (4, (2, 2), 2)
    assert "Conv2d + 1" in repr(converted)


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 6, 3, bias=False), lambda: nn.Linear(8, 6)])
def test_the_weight_it_multiplies_by_can_be_read(make):
    model = make()
    converted = convert(prepare(model, DYNAMIC))
    assert converted.weight.shape == model.weight.shape
    step = model.weight.detach().abs().flatten(1).max(1).values / 127
    error = (converted.weight - model.weight.detach()).abs().flatten(1).max(1).values
    assert (error <= 0.501 * step).all()
    assert (converted.bias is None) == (model.bias is None)
    packed = 6 * (12 if model.bias is None else 8)
    assert converted.nbytes == packed + 6 * 4 + (0 if model.bias is None else 6 * 4)


def test_a_head_that_reads_the_table():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids):
            return torch.nn.functional.linear(self.table(ids), self.table.weight)

    model, ids = Tied(), torch.tensor([[1, 2, 8]])
    assert close(model, convert(prepare(model)), ids)


def test_integers_are_no_input_of_a_linear():
    prepared = prepare(nn.Linear(2, 2))
    prepared(torch.randn(3, 2))
    ours = convert(prepared)
    with pytest.raises(TypeError, match=r"input must be a float tensor, not torch\.int32"):
        ours(torch.ones(3, 2, dtype=torch.int32))
