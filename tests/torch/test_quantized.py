"""Weights in training as checkpoints hold them: of a small Llama, and of every kind of layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from llmq.errors import InputError, UsageError
from llmq.methods import quantize_tensor
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import convert, parameter_groups, prepare, prepare_qat, quantized_tensors, step_parameters
from llmq.torch.fake_layers import fake_layers

TWO_BITS = QuantSpec(bits=2, group_size=32, scale_dtype="bfloat16")
FLOAT_ENDS = {"lm_head": None, "model.embed_tokens": None}
IDS = torch.randint(89, (3, 12), generator=torch.Generator().manual_seed(2))


def llama(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 89}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | heads | changes))


def trained(model, steps=3, rate=1e-3):
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=rate), lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_exact(model):
    layers = fake_layers(model)
    found = quantized_tensors(model)
    assert list(found) == [f"{name}.weight" if name else "weight" for name in layers]
    for layer, tensor in zip(layers.values(), found.values(), strict=True):
        weight = layer.weight.detach()
        assert (weight.shape[0], weight[0].numel()) == tensor.shape
        np.testing.assert_array_equal(tensor.dequantize(), weight.flatten(1).float().numpy())
    return found


def test_a_language_model_trains_at_two_bits():
    model = llama()
    training = prepare_qat(model, TWO_BITS, overrides=FLOAT_ENDS)
    before = check_exact(training)
    losses = trained(training, 8)
    assert losses[-1] < losses[0] - 0.3
    after = check_exact(training)
    assert len(after) == 14
    assert next(iter(after)) == "model.layers.0.self_attn.q_proj.weight"
    for name, tensor in after.items():
        assert tensor.spec == replace(TWO_BITS, strategy="group")
        assert (tensor.scale.astype(np.float32) < 0).any()
        assert not np.array_equal(tensor.scale, before[name].scale)
        assert not np.array_equal(tensor.codes(), before[name].codes())
    assert all(p.grad is not None for p in training.parameters())
    assert isinstance(training.lm_head, nn.Linear)
    assert not set(fake_layers(training)) & set(FLOAT_ENDS)
    with torch.no_grad():
        expected = training.eval()(input_ids=IDS).logits
        assert (convert(training)(input_ids=IDS).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_any_width_and_model_dtype(bits, symmetric):
    model = llama(tie_word_embeddings=True)
    training = prepare_qat(model, QuantSpec(bits=bits, group_size=32, symmetric=symmetric), overrides=FLOAT_ENDS)
    trained(training, 2)
    found = check_exact(training)
    assert {tensor.spec.scale_dtype for tensor in found.values()} == {"float32"}
    assert training.lm_head.weight is training.model.embed_tokens.weight


def test_scales_have_the_dtype_of_the_model():
    training = prepare_qat(llama().to(torch.bfloat16), replace(TWO_BITS, scale_dtype=None), overrides=FLOAT_ENDS)
    trained(training, 2)
    assert {t.spec.scale_dtype for t in check_exact(training).values()} == {"bfloat16"}


def test_tied_weights_are_trained_once_and_rounded_twice():
    training = prepare_qat(llama(tie_word_embeddings=True), QuantSpec(bits=4, group_size=32))
    assert training.lm_head.latent is training.model.embed_tokens.latent
    trained(training, 2)
    check_exact(training)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("spec", [QuantSpec(bits=1), QuantSpec(bits=3), QuantSpec(bits=4, symmetric=False)], ids=str)
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv1d(3, 4, 3), lambda: nn.Embedding(7, 4)],
)
def test_every_kind_of_layer(make, spec, strategy):
    check_exact(prepare_qat(make(), replace(spec, strategy=strategy)))


def test_training_starts_from_given_scales():
    model = llama()
    name = "model.layers.1.mlp.down_proj"
    weight = model.get_submodule(name).weight.detach().numpy()
    given = quantize_tensor(weight, bits=2, group_size=32, method="rtn", scale_dtype="bfloat16")
    for key in (name, f"{name}.weight"):
        training = prepare_qat(model, TWO_BITS, overrides=FLOAT_ENDS, initial={key: given})
        found = quantized_tensors(training)[f"{name}.weight"]
        np.testing.assert_array_equal(found.scale, given.scale)
        np.testing.assert_array_equal(found.packed, given.packed)
    searched = quantized_tensors(prepare_qat(model, TWO_BITS, overrides=FLOAT_ENDS))[f"{name}.weight"]
    best = quantize_tensor(weight, bits=2, group_size=32, method="mse", scale_dtype="bfloat16")
    np.testing.assert_array_equal(searched.scale, best.scale)
    np.testing.assert_array_equal(searched.packed, best.packed)


def test_given_zero_points():
    layer, spec = nn.Linear(8, 3), QuantSpec(bits=3, group_size=4, symmetric=False)
    given = quantize_tensor(layer.weight.detach().numpy(), bits=3, group_size=4, symmetric=False, method="rtn")
    found = quantized_tensors(prepare_qat(layer, spec, initial={"": given}))["weight"]
    np.testing.assert_array_equal(found.zero_point, given.zero_point)
    np.testing.assert_array_equal(found.codes(), given.codes())


@pytest.mark.parametrize(
    ("key", "given", "complaint"),
    [
        ("2", {}, "initial '2' is no layer to quantize"),
        ("1", {}, "initial '1' is no layer to quantize"),
        ("0", {"bits": 3}, r"^0: initial scales do not fit \(expected 2 bits.*found 3 bits"),
        ("0.weight", {"group_size": 8}, r"scales \(3, 2\).*scales \(3, 1\)"),
        ("0", {"symmetric": False}, "symmetric True.*symmetric False"),
    ],
)
def test_initial_scales_must_fit(key, given, complaint):
    model = nn.Sequential(nn.Linear(8, 3), nn.ReLU())
    tensor = quantize_tensor(model[0].weight.detach().numpy(), **{"bits": 2, "group_size": 4} | given)
    with pytest.raises(UsageError, match=complaint):
        prepare_qat(model, QuantSpec(bits=2, group_size=4), initial={key: tensor})


def test_one_scale_cannot_begin_with_many():
    layer = nn.Linear(8, 3)
    given = quantize_tensor(layer.weight.detach().numpy(), bits=4, group_size=-1)
    with pytest.raises(UsageError, match="initial scales differ between rows"):
        prepare_qat(layer, QuantSpec(bits=4, strategy="tensor"), initial={"": given})


def test_groups_must_divide_rows():
    with pytest.raises(InputError, match=r"^0: groups of 64 do not divide rows of 12$"):
        prepare_qat(nn.Sequential(nn.Linear(12, 5)), QuantSpec(bits=2))


def test_only_models_in_training_have_them():
    with pytest.raises(UsageError, match="nothing here is trained"):
        quantized_tensors(prepare(nn.Linear(2, 2)))


def test_steps_have_a_group_of_their_own():
    training = prepare_qat(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), QuantScheme())
    steps = step_parameters(training)
    assert len(steps) == 2 * 3  # scales of weights and inputs, zero points of inputs
    own, of_steps = parameter_groups(training, lr=1e-5)
    assert of_steps == {"params": steps, "weight_decay": 0.0, "lr": 1e-5}
    assert len(own["params"]) == 4
    assert len(list(training.parameters())) == 10
