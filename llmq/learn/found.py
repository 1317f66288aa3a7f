"""Fake quantization by ranges that are found at run time, as integer layers with dynamic inputs find them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmq.learn.fake import LEAST_SCALE
from llmq.learn.rounding import straight

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["found_grid", "found_steps"]


@torch.no_grad()
def found_grid(x: torch.Tensor, spec: QuantSpec, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose scales and zero points from values; see `llmq_kernels.inputs.input_parameters`.

    Parameters
    ----------
    x : float tensor
    spec : QuantSpec
        By token, or else by tensor.
    axes : int
        How many of the last axes make one token.

    Returns
    -------
    scale, zero_point : float32 tensors
        Zero points of codes from 0; of shapes that broadcast against `x`.
    """
    shared = tuple(range(-axes if spec.strategy == "token" else -x.dim(), 0))
    wide = x.to(torch.float32)
    if x.numel():
        low, high = wide.amin(shared, keepdim=True).clamp(max=0.0), wide.amax(shared, keepdim=True).clamp(min=0.0)
    else:
        low = high = wide.sum(shared, keepdim=True)
    half, levels = 1 << (spec.bits - 1), wide.new_tensor(2.0**spec.bits - 1)
    least = LEAST_SCALE[None]
    if spec.symmetric:
        # Tensors, not numbers: by those, accelerators multiply with the inverse instead.
        scale = (torch.maximum(-low, high) / wide.new_tensor(half - 1.0)).clamp(min=least)
        return scale, torch.full_like(scale, half)
    scale = (high / levels - low / levels).clamp(min=least)
    return scale, (-low / scale).round()


def found_steps(x: torch.Tensor, spec: QuantSpec, axes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole steps of values and the step; all gradients go straight through, for ranges hold all values up to rounding.

    Parameters
    ----------
    x, spec, axes
        As for `found_grid`.

    Returns
    -------
    steps : float32 tensor, the shape of `x`
    scale : float32 tensor
        Of a shape that broadcasts against them.
    """
    scale, zero = found_grid(x, spec, axes)
    ratio = x.to(torch.float32) / scale
    return straight(ratio, ratio.round().clamp(-zero, 2.0**spec.bits - 1 - zero)), scale
