"""Fake quantization: values rounded to their grid and widened again, with gradients by the straight-through estimator.

Steps are learned: LSQ (Esser et al. 2020, "Learned Step Size Quantization"), with the zero points of LSQ+ (Bhalgat et
al. 2020).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["FakeQuantize"]

_LEAST: Final = 2.0**-126
"""The least magnitude of a step: the least normal float32, as elsewhere."""

_SCALE_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
            scale = _straight(scale, scale.to(_SCALE_DTYPES[self.spec.scale_dtype]).to(torch.float32))
        scale = torch.where(scale.abs() < _LEAST, torch.full_like(scale, _LEAST).copysign(scale), scale)
        if self.zero_point is None:
            return scale, None
        bounded = self.zero_point.clamp(0, self.highest)
        return scale, _straight(bounded, bounded.round())

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
        grouped, scale, zero_point = self._aligned(x)
        shrink = 1 / (self._sharing(grouped) * self._steps) ** 0.5
        scale = _scaled_gradient(scale, shrink)
        if self.spec.bits == 1 and self.spec.symmetric:
            return _sign(grouped, scale).reshape(x.shape).to(x.dtype)
        zero = self._middle if zero_point is None else _scaled_gradient(zero_point, shrink)
        clipped = torch.minimum(torch.maximum(grouped / scale, self.lowest - zero), self.highest - zero)
        return (_straight(clipped, clipped.round()) * scale).reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of values, uint8 of the shape of `x`: `forward` returns `scale * (code - zero_point)`."""
        grouped, scale, zero_point = self._aligned(x)
        if self.spec.bits == 1 and self.spec.symmetric:
            return (grouped / scale > 0).to(torch.uint8).reshape(x.shape)
        zero = self._middle if zero_point is None else zero_point
        whole = (grouped / scale).round() + zero
        return whole.clamp(self.lowest, self.highest).to(torch.uint8).reshape(x.shape)

    def extra_repr(self) -> str:
        """Width and grid, in `repr`."""
        grid = "symmetric" if self.spec.symmetric else "asymmetric"
        return f"{self.spec.bits} bits, {grid}, by {self.spec.strategy}"

    @property
    def _middle(self) -> torch.Tensor:
        """The zero point of a symmetric grid."""
        return torch.tensor(2.0 ** (self.spec.bits - 1))

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


def _sign(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Half a step with the sign of `x`."""
    found: torch.Tensor = _Sign.apply(x, step)  # type: ignore[no-untyped-call]
    return found


class _Sign(torch.autograd.Function):
    """Signs times half a step."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Of zero the sign is negative, as everywhere."""
        sign = torch.where(x / step > 0, 0.5, -0.5)
        ctx.save_for_backward(sign, x.abs() <= step.abs())
        ctx.shape = step.shape  # type: ignore[attr-defined]
        return sign * step

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Straight through near zero."""
        sign, near = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        return gradient * near, (gradient * sign).sum_to_size(ctx.shape)  # type: ignore[attr-defined]


def _straight(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `x`: exactly, for `x + (rounded - x)` may differ in its last bit."""
    found: torch.Tensor = _Straight.apply(x, rounded)  # type: ignore[no-untyped-call]
    return found


class _Straight(torch.autograd.Function):
    """The straight-through estimator."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        """The rounded values."""
        return rounded.detach()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ARG004
        """As if nothing had been rounded."""
        return gradients[0], None


def _scaled_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x`, whose gradient is multiplied by a factor."""
    found: torch.Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return found


class _ScaledGradient(torch.autograd.Function):
    """The gradient scale of LSQ."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, factor: float) -> torch.Tensor:
        """The values."""
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Of the values, smaller."""
        return gradients[0] * ctx.factor, None  # type: ignore[attr-defined]
