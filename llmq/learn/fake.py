"""Fake quantization: values rounded to their grid and widened again, with gradients by the straight-through estimator.

Steps are learned: LSQ (Esser et al. 2020, "Learned Step Size Quantization"), with the zero points of LSQ+ (Bhalgat et
al. 2020).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from llmq.learn.rounding import round_within, scaled_gradient, sign, straight, whole_within

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["LEAST_SCALE", "SCALE_DTYPES", "FakeQuantize"]

LEAST_SCALE: Final = {None: 2.0**-126, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}
"""The least magnitude of a step by how it is stored: the least normal float32, as elsewhere, or the least float16."""

SCALE_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Torch's dtypes of scales by name."""


class FakeQuantize(nn.Module):
    """Round a tensor to `scale * (code - zero_point)`, and let gradients through.

    With `v = x / scale` and codes from `lowest` to `highest`, the gradients of one value are

    - with respect to `x`: 1 where `v` lies on the grid, else 0 (straight through);
    - with respect to `scale`: `round(v) - v` on the grid, the end of the grid beyond it, times
      `1 / sqrt(n * highest_step)`, `n` values sharing the scale (LSQ, section 2.2);
    - with respect to `zero_point`: 0 on the grid, `-scale` beyond it (LSQ+), times the same.

    The sign grid `{-s, +s}` of one bit has the step `scale = 2 s`: gradients pass where `|x| <= 2 s`, and that of `s`
    is the sign.

    Parameters
    ----------
    spec : QuantSpec
        Resolved where it is by group: a group size that divides the rest of the shape.
    scale : float32 tensor
        Steps. () by tensor; (rows, n_groups) by channel (one group) and by group. Of either sign where
        `spec.signed_scale` and the grid is symmetric, else taken as magnitudes.
    zero_point : float32 tensor or None
        Of the same shape; None for symmetric grids. Used rounded, within the codes.

    Attributes
    ----------
    scale, zero_point : nn.Parameter
        Float32, as given; `grid` tells what is used.
    """

    def __init__(self, spec: QuantSpec, scale: torch.Tensor, zero_point: torch.Tensor | None = None) -> None:
        super().__init__()
        if (zero_point is None) != spec.symmetric:
            raise ValueError("asymmetric grids, and no others, have a zero point")
        self.spec = spec
        self.scale = nn.Parameter(scale.detach().clone().to(torch.float32))
        self.zero_point = None if zero_point is None else nn.Parameter(zero_point.detach().clone().to(torch.float32))
        self.lowest = 1 if spec.range == "narrow" else 0
        self.highest = 2**spec.bits - 1

    def grid(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales as they are stored and whole zero points, float32 of the shape of `scale`; differentiable."""
        scale: torch.Tensor = self.scale
        if not (self.spec.symmetric and self.spec.signed_scale):
            scale = scale.abs()
        if self.spec.scale_dtype is not None:
            dtype = SCALE_DTYPES[self.spec.scale_dtype]
            largest = torch.finfo(dtype).max
            scale = straight(scale, scale.clamp(-largest, largest).to(dtype).to(torch.float32))
        least = LEAST_SCALE[self.spec.scale_dtype]
        scale = torch.where(scale.abs() < least, torch.full_like(scale, least).copysign(scale), scale)
        return scale, None if self.zero_point is None else whole_within(self.zero_point, self.highest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round values.

        Parameters
        ----------
        x : float tensor
            By tensor any shape; else (rows, ...), whose rows the groups divide.

        Returns
        -------
        tensor
            Of the shape and dtype of `x`; computed in float32.
        """
        steps, scale = self.steps(x)
        return (steps * scale).reshape(x.shape).to(x.dtype)

    def steps(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole steps and the step: what `forward` multiplies, with its gradients.

        Returns
        -------
        steps : float32 tensor
            `code - zero_point`, plus or minus one half on the sign grid: of the shape of `x` by tensor, else (rows,
            n_groups, group_size).
        scale : float32 tensor
            () or (rows, n_groups, 1).
        """
        grouped, scale, zero_point = self._aligned(x)
        shrink = 1 / (self._sharing(grouped) * self._steps) ** 0.5
        scale = scaled_gradient(scale, shrink)
        if self.spec.bits == 1 and self.spec.symmetric:
            return sign(grouped, scale), scale
        if zero_point is None:
            middle = 1 << (self.spec.bits - 1)
            return round_within(grouped / scale, self.lowest - middle, self.highest - middle), scale
        zero = scaled_gradient(zero_point, shrink)
        return round_within(grouped / scale, self.lowest - zero, self.highest - zero), scale

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of values, uint8 of the shape of `x`: `forward` returns `scale * (code - zero_point)`."""
        grouped, scale, zero_point = self._aligned(x)
        if self.spec.bits == 1 and self.spec.symmetric:
            return (grouped / scale > 0).to(torch.uint8).reshape(x.shape)
        zero = 1 << (self.spec.bits - 1) if zero_point is None else zero_point
        whole = (grouped / scale).round() + zero
        return whole.clamp(self.lowest, self.highest).to(torch.uint8).reshape(x.shape)

    def extra_repr(self) -> str:
        """Width and grid, in `repr`."""
        grid = "symmetric" if self.spec.symmetric else "asymmetric"
        return f"{self.spec.bits} bits, {grid}, by {self.spec.strategy}"

    @property
    def _steps(self) -> int:
        """Steps from zero to the end of the grid; at least one."""
        half: int = 1 << (self.spec.bits - 1)
        return max(1, half - 1 if self.spec.symmetric else self.highest)

    def _sharing(self, grouped: torch.Tensor) -> int:
        """How many values share a scale."""
        return max(1, grouped.shape[-1] if self.scale.dim() else grouped.numel())

    def _aligned(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values as float32 (rows, n_groups, group_size), scales and zero points that broadcast against them."""
        scale, zero_point = self.grid()
        wide = x.to(torch.float32)
        if not scale.dim():
            return wide, scale, zero_point
        rows, groups = scale.shape
        grouped = wide.reshape(rows, groups, prod(x.shape) // (rows * groups))
        return grouped, scale[..., None], None if zero_point is None else zero_point[..., None]
