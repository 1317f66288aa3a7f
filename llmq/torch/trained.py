"""Integer layers of what was trained: codes, scales and zero points as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmq import integer
from llmq.errors import InputError, LlmqError, UsageError
from llmq.integer import ActivationGrid, Grids, LayerWeight
from llmq.torch.integer_module import IntegerModule
from llmq.torch.kinds import geometry, label
from llmq.torch.modules import to_numpy

if TYPE_CHECKING:
    from llmq.torch.fake_layers import FakeLayer

__all__ = ["check_trainable", "trained_module"]


def trained_module(name: str, layer: FakeLayer) -> IntegerModule:
    """Make the integer layer of one in training.

    Raises
    ------
    UsageError
        Its input is static, and it has not seen any.
    InputError
        Values that are not finite.
    """
    if layer.seen is not None and not layer.seen:
        raise UsageError(
            "has not seen any input, and its range is static",
            tensor=label(name),
            hint="train the model, or call it on data, before convert, or use dynamic inputs",
        )
    try:
        made = _integer_layer(layer)
    except LlmqError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(str(error), tensor=label(name)) from error
    return IntegerModule(made, layer, layer.chain, layer.scheme)  # type: ignore[arg-type]  # every FakeLayer is one


def check_trainable(name: str, layer: FakeLayer) -> None:
    """Refuse before training what could not be converted after it, by one row of the weight.

    Raises
    ------
    InputError
        Groups of filters, or rows too long for 32-bit sums.
    """
    spec, shape = layer.scheme.weight, (1, *layer.latent.shape[1:])
    groups = layer.fake_weight.scale.shape[1] if layer.fake_weight.scale.dim() else 1
    point = None if spec.symmetric else np.zeros((1, groups), np.uint8)
    try:
        codes = np.full(shape, layer.fake_weight.lowest, np.uint8)
        weight = LayerWeight.of(codes, np.ones((1, groups), np.float32), point, spec)
        bias = None if getattr(layer, "bias", None) is None else np.zeros(1, np.float32)
        _assembled(layer, weight, bias)
    except (TypeError, ValueError) as error:
        raise InputError(
            str(error), tensor=label(name), hint=f"overrides={{{name!r}: ...}} chooses another scheme"
        ) from error


@torch.no_grad()
def _integer_layer(layer: FakeLayer) -> Any:
    parts, spec = layer.parts(), layer.scheme.weight
    _, point = layer.fake_weight.grid()
    middle = (1 << spec.bits - 1) if point is None else point.reshape(-1, parts.scale.shape[1])[..., None]
    whole, step = parts.integers, parts.scale
    if parts.sign_grid:
        codes, step = (whole + 1) / 2, step * 2
    else:
        codes = whole + middle
    if layer.norm is not None and spec.strategy == "tensor":
        # The norm gave every row a scale of its own.
        spec = replace(spec, strategy="channel")
    points = None if point is None else np.ascontiguousarray(_bytes(point.expand(step.shape)))
    weight = LayerWeight.of(_bytes(codes.reshape(layer.latent.shape)), to_numpy(step), points, spec)
    return _assembled(layer, weight, None if parts.bias is None else to_numpy(parts.bias))


def _assembled(layer: Any, weight: LayerWeight, bias: np.ndarray | None) -> Any:
    if isinstance(layer, nn.Embedding):
        return integer.Embedding(weight)
    grids = Grids(_input_grid(layer))
    if isinstance(layer, nn.Linear):
        return integer.Linear(weight, bias, grids)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    kind = integer.Conv2d if isinstance(layer, nn.Conv2d) else integer.Conv1d
    place = geometry(layer)
    return kind.of(weight, bias, grids, **place if weight.rows > 1 else place | {"groups": 1})


@torch.no_grad()
def _input_grid(layer: Any) -> ActivationGrid | None:
    spec = layer.scheme.input
    if spec is None or isinstance(layer, nn.Embedding):
        return None
    if layer.fake_input is None:
        return ActivationGrid(spec)
    scale, point = layer.fake_input.grid()
    centred = 0 if point is None else int(point) - (1 << (spec.bits - 1))
    return ActivationGrid(spec, np.asarray(scale.item(), np.float32), np.asarray(centred, np.int32))


def _bytes(values: torch.Tensor) -> np.ndarray:
    found: np.ndarray = values.to("cpu", torch.uint8).numpy()
    return found
