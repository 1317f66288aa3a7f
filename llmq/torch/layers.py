"""Torch modules and functions as layers of `llmq.integer`, for networks that leave torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn import functional

from llmq import integer
from llmq.errors import UnsupportedError
from llmq.torch.fold import Absorbed
from llmq.torch.integer_module import IntegerModule
from llmq.torch.kinds import check, geometry, label
from llmq.torch.modules import to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FUNCTIONS", "HINT", "PASSING", "module_layers"]

HINT: Final = "what else a model computes can stay in torch: export the part of it that is a chain of layers"


def _integer_layers(module: IntegerModule) -> list[Any]:
    return [module.layer] if module.chain.relu is None else [module.layer, integer.ReLU()]


def module_layers(name: str, module: nn.Module) -> list[Any]:
    """Layers that one module stands for; none where it does nothing.

    Raises
    ------
    UnsupportedError
        A module that no layer expresses.
    """
    make = _MODULES.get(type(module))
    if make is None:
        raise UnsupportedError(f"{type(module).__name__} has no integer layer", tensor=label(name), hint=HINT)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        check(name, module)
    try:
        return make(module)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(str(error), tensor=label(name)) from error


def _max_pool(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *rest: Any, **flags: Any
) -> list[Any]:
    if dilation not in (1, (1, 1)) or any(rest) or any(flags.values()):
        raise ValueError("max pooling is served without dilation, ceil_mode and return_indices")
    return [integer.MaxPool2d(kernel_size, stride, padding)]


def _avg_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> list[Any]:
    if ceil_mode or divisor_override is not None or not (count_include_pad or padding in (0, (0, 0))):
        raise ValueError("average pooling is served with padding counted, without ceil_mode and divisor_override")
    return [integer.AvgPool2d(kernel_size, stride, padding)]


def _flatten(start_dim: int = 0, end_dim: int = -1) -> list[Any]:
    if end_dim != -1:
        raise ValueError("flattening is served up to the last axis")
    return [integer.Flatten(start_dim)]


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> list[Any]:  # noqa: ARG001  torch's
    if training:
        raise ValueError("dropout does nothing in eval mode only: call eval() first")
    return []


def _float_linear(module: nn.Linear) -> list[Any]:
    bias = None if module.bias is None else to_numpy(module.bias)
    return [integer.FloatLinear(to_numpy(module.weight), bias)]


def _float_conv(module: nn.Conv1d | nn.Conv2d) -> list[Any]:
    kind = integer.FloatConv2d if isinstance(module, nn.Conv2d) else integer.FloatConv1d
    bias = None if module.bias is None else to_numpy(module.bias)
    return [kind(to_numpy(module.weight), bias, geometry=geometry(module))]


_DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
PASSING: Final = (Absorbed, nn.Identity, nn.Flatten, *_DROPOUTS)
"""Modules whose result shares memory with what they are given."""

_MODULES: Final[dict[type[nn.Module], Callable[[Any], list[Any]]]] = {
    IntegerModule: _integer_layers,
    Absorbed: lambda _: [],
    nn.Identity: lambda _: [],
    **dict.fromkeys(_DROPOUTS, lambda m: _dropout(m.p, m.training)),
    nn.Linear: _float_linear,
    nn.Conv1d: _float_conv,
    nn.Conv2d: _float_conv,
    nn.ReLU: lambda _: [integer.ReLU()],
    nn.Flatten: lambda m: _flatten(m.start_dim, m.end_dim),
    nn.MaxPool2d: lambda m: _max_pool(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices),
    nn.AvgPool2d: lambda m: _avg_pool(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m: [integer.AdaptiveAvgPool2d(m.output_size)],
}
"""Layers of a module of exactly this type."""


def _relu(inplace: bool = False) -> list[Any]:  # noqa: ARG001  torch's signature
    return [integer.ReLU()]


FUNCTIONS: Final[dict[Any, Callable[..., list[Any]]]] = {
    torch.relu: _relu,
    functional.relu: _relu,
    functional.dropout: _dropout,
    "relu": _relu,
    "relu_": _relu,
    torch.flatten: _flatten,
    "flatten": _flatten,
    functional.max_pool2d: _max_pool,
    functional.avg_pool2d: _avg_pool,
    functional.adaptive_avg_pool2d: lambda output_size: [integer.AdaptiveAvgPool2d(output_size)],
}
"""Layers of a call, by the function or the name of the method, from its arguments behind the tensor."""
