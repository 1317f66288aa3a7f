"""Quantization-aware training: a copy of a model whose layers train for their integers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmq.errors import UsageError
from llmq.learn import FakeQuantize
from llmq.torch.chains import Chain, find_chains
from llmq.torch.fake_layers import FAKE_LAYERS, FakeEmbedding, FakeLayer, fake_layers
from llmq.torch.fold import Absorbed
from llmq.torch.kinds import label, layer_of
from llmq.torch.modules import keep_threads, keep_to_modules, modules_by_name, replace_module, skeleton
from llmq.torch.prepare import calibrations
from llmq.torch.schemes import schemes_of
from llmq.torch.starts import initial_by_layer, weight_start
from llmq.torch.together import Together
from llmq.torch.trained import check_trainable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.spec import QuantizedTensor, QuantScheme, QuantSpec
    from llmq.torch.prepare import Calibration

__all__ = ["parameter_groups", "prepare_qat", "step_parameters"]


@keep_threads()
def prepare_qat(
    model: nn.Module,
    scheme: QuantScheme | QuantSpec | None = None,
    *,
    example_inputs: Any = None,
    overrides: Mapping[str, QuantScheme | QuantSpec | None] | None = None,
    initial: Mapping[str, QuantizedTensor] | None = None,
) -> nn.Module:
    """Copy a model for training: train the copy as any model, then `convert` it.

    Its layers compute what their integers will, with gradients by the straight-through estimator; the steps of weights
    and of static inputs are parameters that are trained with the others (LSQ). Batch norms stay while they train, so
    that training can start from the beginning; `convert`, and the copy in eval mode, fold them into steps and biases,
    which changes no code. The copy is in the mode of the model, which is left as it is.

    Parameters
    ----------
    model : nn.Module
        A float model, or one that `prepare` returned and that saw data: its static ranges begin with what was found
        there, those of a float model with the first inputs. Batch norms that `prepare` folded stay folded.
    scheme, example_inputs, overrides
        As for `prepare`, and only for a float model.
    initial : mapping of str to QuantizedTensor, optional
        Scales and zero points to begin with, by names of layers or of their weights; others have those of least
        squared error. The floats stay what they are.

    Raises
    ------
    UsageError
        The model trains already, or has schemes already; an override or an initial weight that fits no layer.
    UnsupportedError
        A layer that integer layers cannot stand for, or nothing left to quantize.
    InputError
        A weight that is not finite, or whose rows its groups do not divide.
    """
    if fake_layers(model):
        raise UsageError("prepared already", hint="prepare_qat takes the float model, or what prepare returns")
    found = calibrations(model)
    if found and (scheme is not None or overrides is not None):
        raise UsageError("a prepared model has its schemes already", hint="give scheme and overrides to prepare")
    copied = copy.deepcopy(model)
    keep_to_modules(copied)
    if found:
        chains = {name: calibration.chain for name, calibration in found.items()}
        schemes = {name: calibration.scheme for name, calibration in found.items()}
    else:
        schemes = schemes_of(copied, scheme, overrides)
        traced = find_chains(skeleton(copied).eval(), example_inputs)
        chains = {name: traced.get(name, Chain(name)) for name in schemes}
    starts = initial_by_layer(copied, schemes, initial or {})
    modules = modules_by_name(copied)
    for calibration in calibrations(copied).values():
        calibration.leave(modules)
    for name, wanted in schemes.items():
        weight = layer_of(modules, name).weight
        _make_fake(modules[name], chains[name], wanted, weight_start(name, weight, wanted.weight, starts.get(name)))
        norm = chains[name].norm
        if norm is not None and not isinstance(modules[norm], Absorbed):
            replace_module(copied, norm, Absorbed(label(name)))
            modules[name].norm = modules[norm]
        if name in found:
            _take_over(found[name], modules[name])
    for name, fake in fake_layers(copied).items():
        check_trainable(name, fake)
    Together.watch(copied, [chains[name] for name in schemes])
    return copied


def step_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Learned scales and zero points of a model that `prepare_qat` returned."""
    return [p for m in model.modules() if isinstance(m, FakeQuantize) for p in m.parameters()]


def parameter_groups(model: nn.Module, **of_steps: Any) -> list[dict[str, Any]]:
    """Parameters for an optimizer: the model's own, and the steps, which are not to decay.

    Parameters
    ----------
    model : nn.Module
        From `prepare_qat`.
    **of_steps
        Settings of the optimizer for steps, such as `lr`, most often less than that of the weights.

    Examples
    --------
    >>> from llmq.torch import parameter_groups, prepare_qat
    >>> groups = parameter_groups(prepare_qat(nn.Linear(4, 2)), lr=1e-4)
    >>> [len(group["params"]) for group in groups], groups[1]["weight_decay"]
    ([2, 3], 0.0)
    """
    steps = step_parameters(model)
    own = {id(p) for p in steps}
    others = [p for p in model.parameters() if id(p) not in own]
    return [{"params": others}, {"params": steps, "weight_decay": 0.0, **of_steps}]


def _make_fake(layer: nn.Module, chain: Chain, scheme: QuantScheme, fake_weight: FakeQuantize) -> None:
    """Let a layer become one in training: its names, hooks and parameters stay."""
    kind = FAKE_LAYERS[type(layer)]
    layer.__class__ = kind
    assert isinstance(layer, FakeLayer)
    spec = None if kind is FakeEmbedding else scheme.input
    layer.chain, layer.scheme, layer.norm = chain, scheme, None
    layer.fake_weight, layer.fake_input = fake_weight, None
    static = spec is not None and not spec.dynamic
    if spec is not None and static:
        # Integers of inputs have no narrow range, and no negative scales.
        own = replace(spec, range="full", signed_scale=False, scale_dtype="float32")
        one = fake_weight.scale.new_ones(())
        layer.fake_input = FakeQuantize(own, one, None if own.symmetric else torch.zeros_like(one))
    layer.register_buffer("seen", fake_weight.scale.new_zeros((), dtype=torch.bool) if static else None)


def _take_over(calibration: Calibration, layer: nn.Module) -> None:
    """Begin with what an observer found, and let what `prepare` folded train."""
    assert isinstance(layer, FakeLayer)
    if layer.chain.norm is not None:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(True)
    if calibration.observer is not None:
        try:
            range_ = calibration.observer.range()
        except ValueError:  # it saw nothing: the first inputs will do
            return
        layer.learn_range(*range_)
