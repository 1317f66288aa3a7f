"""Rounding with gradients: the straight-through estimator, and what LSQ asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

__all__ = ["round_within", "scaled_gradient", "sign", "straight", "whole_within"]


def straight(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `x`: exactly, for `x + (rounded - x)` may differ in its last bit."""
    found: torch.Tensor = _Straight.apply(x, rounded)  # type: ignore[no-untyped-call]
    return found


def round_within(x: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """Round half to even, to `low` at least and `high` at most, which are whole.

    The gradient goes to `x` from `low` to `high`, both included, and to the end beyond which `x` lies otherwise.

    Parameters
    ----------
    x : float32 tensor
    low, high : float, or float32 tensor
        Of a shape that broadcasts against `x`.
    """
    found: torch.Tensor = _RoundWithin.apply(x, low, high)  # type: ignore[no-untyped-call]
    return found


def whole_within(x: torch.Tensor, highest: int) -> torch.Tensor:
    """Round to whole numbers from 0 to `highest`; gradients pass but where they would lead further out."""
    found: torch.Tensor = _WholeWithin.apply(x, highest)  # type: ignore[no-untyped-call]
    return found


def sign(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Half the sign of `x / step`, negative of zero as everywhere.

    Times the step, the gradient passes where `|x| <= |step|`; that of the step is the half sign alone.
    """
    found: torch.Tensor = _Sign.apply(x, step)  # type: ignore[no-untyped-call]
    return found


def scaled_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x`, whose gradient is multiplied by a factor."""
    found: torch.Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return found


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return rounded.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ARG004
        return gradients[0], None


class _RoundWithin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float
    ) -> torch.Tensor:
        below, above = x < low, x > high
        ctx.save_for_backward(below, above)
        ctx.shape = low.shape if isinstance(low, torch.Tensor) else None  # type: ignore[attr-defined]
        return x.round().clamp(low, high)  # type: ignore[arg-type]  # both are of one kind

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        below, above = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        inside = gradient.masked_fill(below | above, 0.0)
        if ctx.shape is None:  # type: ignore[attr-defined]
            return inside, None, None
        ends = [(gradient * beyond).sum_to_size(ctx.shape) for beyond in (below, above)]  # type: ignore[attr-defined]
        return inside, *ends


class _WholeWithin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, highest: int) -> torch.Tensor:
        ctx.save_for_backward(x < 0, x > highest)
        return x.clamp(0, highest).round()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        below, above = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        # A step against the gradient: down where it is positive.
        outward = (below & (gradient > 0)) | (above & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x.abs() <= step.abs(), step)
        return torch.where(x / step > 0, 0.5, -0.5)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        near, step = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * near / step, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.factor, None  # type: ignore[attr-defined]
