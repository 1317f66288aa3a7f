"""Copies of models, their modules by name, and what passes between torch and NumPy."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["call", "keep_threads", "keep_to_modules", "modules_by_name", "replace_module", "skeleton", "to_numpy"]


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model's modules that shares its parameters and buffers."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tuple of arguments, a dict of keyword arguments, or one argument; without gradients."""
    with torch.no_grad():
        if isinstance(inputs, tuple):
            return model(*inputs)
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by each of their names."""
    return dict(model.named_modules(remove_duplicate=False))


def replace_module(model: nn.Module, name: str, by: nn.Module) -> None:
    """Put another module at every place where the one of this name is registered; it must not be the model itself."""
    modules = modules_by_name(model)
    replaced = modules[name]
    for each, module in modules.items():
        if module is replaced:
            parent, _, key = each.rpartition(".")
            modules[parent].register_module(key, by)


def keep_to_modules(model: nn.Module) -> None:
    """Keep torch's transformer layers from a fused path that multiplies by the weights of modules it never calls."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


@contextmanager
def keep_threads() -> Iterator[None]:
    """Restore the number of torch's threads: kernels that start theirs set it to their own, for both are OpenMP's."""
    count = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """The values of a float tensor as float32 of the same shape, contiguous, without a copy where none is needed."""
    return np.ascontiguousarray(x.detach().to("cpu", torch.float32).numpy())
