"""What a layer in training is made of, as its integer layer will hold it: whole numbers, scales, a bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from llmq.integer.product import BIAS_LIMIT
from llmq.learn.fake import LEAST_SCALE
from llmq.learn.rounding import straight

if TYPE_CHECKING:
    from torch import nn

    from llmq.learn import FakeQuantize

__all__ = ["Parts", "add_bias", "folded", "raised"]

_EXACT: Final = 2.0**23
"""Half of the whole numbers that float32 holds exactly: the other half is for sums."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A weight and a bias on their way to integers.

    Parameters
    ----------
    integers : float32 tensor (rows, n_groups, group_size)
        Whole: codes minus the zero point, -1 and 1 on the sign grid.
    scale : float32 tensor (rows, n_groups)
        Of one whole number, of either sign.
    bias : float32 tensor (rows,) or None
    sign_grid : bool
    """

    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    sign_grid: bool

    @classmethod
    def of(cls, fake: FakeQuantize, weight: torch.Tensor, bias: torch.Tensor | None) -> Parts:
        """Round a weight (rows, ...)."""
        steps, step = fake.steps(weight)
        rows, groups = len(weight), fake.scale.shape[1] if fake.scale.dim() else 1
        sign_grid = fake.spec.bits == 1 and fake.spec.symmetric
        integers = steps.reshape(rows, groups, -1)
        scale = step.reshape(-1, groups).expand(rows, groups)
        if sign_grid:
            integers, scale = integers * 2, scale / 2
        return cls(integers, scale, None if bias is None else bias.to(torch.float32), sign_grid)

    def values(self) -> torch.Tensor:
        """What the whole numbers stand for, float32 (rows, n_groups, group_size)."""
        return self.integers * self.scale[..., None]


def folded(parts: Parts, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Parts:
    """Take in a batch norm in eval mode: it scales rows, so that their steps take it, and no code changes.

    As `llmq.torch.fold.fold_norm` does for floats, computed in float64 and rounded once.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = (
        torch.rsqrt(variance + norm.eps) if norm.weight is None else norm.weight.double() / (variance + norm.eps).sqrt()
    )
    shift = 0.0 if norm.bias is None else norm.bias.double()
    before = 0.0 if parts.bias is None else parts.bias.double()
    scale = (parts.scale.double() * factor[:, None]).to(torch.float32)
    return replace(parts, scale=scale, bias=((before - mean) * factor + shift).to(torch.float32))


def raised(parts: Parts, x_scale: torch.Tensor | None) -> Parts:
    """Keep scales from being so small that a bias would not hold in its bits, as `llmq.integer.product` does.

    Whole numbers of such a row shrink; those of the sign grid cannot.

    Parameters
    ----------
    parts : Parts
    x_scale : float32 tensor () or None
        Of a static input.
    """
    scale = parts.scale
    least = torch.full_like(scale, LEAST_SCALE["float32"])
    if x_scale is not None and parts.bias is not None:
        held = parts.bias.detach().abs().double() / (x_scale.detach().double() * BIAS_LIMIT)
        above = torch.nextafter(held.to(torch.float32), held.new_tensor(torch.inf, dtype=torch.float32))
        least = torch.maximum(least, above[:, None])
    weak = scale.abs() < least
    if not weak.any():
        return parts
    wider = torch.where(weak, least.copysign(scale), scale)
    if parts.sign_grid:
        return replace(parts, scale=wider)
    shrunk = (parts.integers * (scale / wider)[..., None]).round()
    return replace(parts, integers=torch.where(weak[..., None], shrunk, parts.integers), scale=wider)


def add_bias(sums: torch.Tensor, bias: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    """Scale sums of whole numbers and a bias that is rounded to their step, as `llmq.integer.product` does.

    Parameters
    ----------
    sums : float32 tensor (n, rows, ...)
    bias, x_scale, w_scale : float32 tensors
        Of shapes that broadcast against the sums.
    """
    step = x_scale.double() * w_scale.double()
    ratio = bias.double() / step
    whole = straight(ratio, ratio.round())
    codes = whole.clamp(-BIAS_LIMIT, BIAS_LIMIT)
    # Integers add up exactly; float32 does no longer.
    wide = codes.numel() > 0 and bool(codes.abs().max() > _EXACT)
    total = (sums.double() + codes).to(torch.float32) if wide else sums + codes.to(torch.float32)
    y = total * (x_scale * w_scale)
    over = whole != codes
    if not over.any():
        return y
    return y + torch.where(over, bias.double() - codes * step, 0.0).to(torch.float32)
