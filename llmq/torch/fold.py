"""Fold the batch norm that follows a convolution into its weight and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmq.torch.chains import Chain, find_chains
from llmq.torch.kinds import label
from llmq.torch.modules import modules_by_name, replace_module

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Absorbed", "fold_chains", "fold_norm"]


class Absorbed(nn.Module):
    """Stands where a module was that its predecessor took over, and hands on what it is given.

    Parameters
    ----------
    into : str
        Who took it over.
    """

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = into

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that batch norms and ReLUs give it
        """Return the argument itself."""
        return input

    def extra_repr(self) -> str:
        """Who took it over, in `repr`."""
        return f"into {self.into}"


def fold_norm(layer: nn.Conv1d | nn.Conv2d, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Give a convolution the weight and bias with which it computes `norm(layer(x))` in eval mode.

    `w' = w * f` and `b' = (b - mean) * f + shift` with `f = gain / sqrt(variance + eps)` for each output channel
    (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    section 3.2), computed in float64 and rounded once.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = layer.weight.detach()
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach().double()
    factor = gain / torch.sqrt(variance + norm.eps)
    folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(((bias - mean) * factor + shift).to(weight.dtype), requires_grad=False)


def fold_chains(model: nn.Module, layers: Iterable[str], example_inputs: Any = None) -> dict[str, Chain]:
    """Fold what follows some layers of a model in eval mode, in place.

    Returns
    -------
    dict of str to Chain
        The chain of each layer, of one module where nothing can be taken over. ReLUs stay where they are.
    """
    modules, chains = modules_by_name(model), find_chains(model, example_inputs)
    found = {name: chains.get(name, Chain(name)) for name in layers}
    for name, chain in found.items():
        if chain.norm is not None:
            layer, norm = modules[name], modules[chain.norm]
            assert isinstance(layer, nn.Conv1d | nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
            fold_norm(layer, norm)
            replace_module(model, chain.norm, Absorbed(label(name)))
    return found
