"""A weight that learns how it is rounded: its floats, and the scales and zero points of its groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from llmq.learn.fake import LEAST_SCALE, FakeQuantize
from llmq.spec import FLOAT_DTYPES, QuantizedTensor
from llmq_kernels.pack import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LearnedRounding", "Rates"]

_ELEMENTS: Final = 1 << 17
"""Elements of a weight that are rounded at a time: what is made of them on the way stays in the cache."""

_BETAS: Final = (0.9, 0.99)

_INSIDE: Final = 0.49
"""How far from the middle of its cell, in steps, a weight begins at most."""

_EDGE: Final = 1e-3
"""How near to the ends of the grid a weight comes, in steps: beyond them no gradient reaches it."""


@dataclass(frozen=True)
class Rates:
    """How far a step of Adam moves what is learned.

    Parameters
    ----------
    weight : float
        Of a weight, in steps that its group began with.
    scale : float
        Of a scale, as a part of what it began with.
    zero_point : float
        In codes.
    """

    weight: float
    scale: float
    zero_point: float


class LearnedRounding:
    """A weight and its grid, learned by Adam through the straight-through estimator of `FakeQuantize`.

    It begins with the codes and the grid of an earlier quantization: each float stands in the cell of its code, as
    near to the original as the cell allows. Floats are counted in the steps that their groups began with, and scales
    as parts of what they began with, so that one rate serves all groups. Floats stay within the grid: no gradient
    would reach them beyond it.

    Parameters
    ----------
    weight : float32 tensor (out_features, in_features)
        The original; overwritten.
    start : QuantizedTensor
    """

    def __init__(self, weight: torch.Tensor, start: QuantizedTensor) -> None:
        self._spec = start.spec
        scale, least = torch.from_numpy(start.scale.astype(np.float32)), LEAST_SCALE[start.spec.scale_dtype]
        self._unit = torch.where(scale.abs() < least, torch.full_like(scale, least), scale)
        self._steps, self._ratio = weight, torch.ones_like(scale)
        self._zero = None if start.zero_point is None else torch.from_numpy(start.zero_point.astype(np.float32))
        values = torch.from_numpy(start.dequantize())
        for rows in self._parts():
            unit = self._wide(self._unit[rows].abs())
            self._steps[rows] = (
                values[rows] + (weight[rows] - values[rows]).clamp(-_INSIDE * unit, _INSIDE * unit)
            ) / unit
        self._stay_within()
        groups = [{"params": [one]} for one in (self._steps, self._ratio, self._zero) if one is not None]
        self._adam = torch.optim.Adam(groups, betas=_BETAS, fused=True)

    @torch.no_grad()
    def round_into(self, out: torch.Tensor) -> None:
        """Write the weight as it would be stored, float32 (out_features, in_features)."""
        for rows in self._parts():
            out[rows] = self._fake(rows)(self._floats(rows))

    def step(self, gradient: torch.Tensor, rates: Rates) -> None:
        """Take a step against the gradient of the rounded weight, float32 (out_features, in_features); overwritten."""
        ratio = torch.empty_like(self._ratio)
        zero = None if self._zero is None else torch.empty_like(self._zero)
        for rows in self._parts():
            with torch.enable_grad():
                fake, x = self._fake(rows), self._floats(rows).requires_grad_()
                learned = [x, *fake.parameters()]
                found = torch.autograd.grad(fake(x), learned, gradient[rows])
            gradient[rows] = found[0] * self._wide(self._unit[rows].abs())
            ratio[rows] = found[1] * self._unit[rows]
            if zero is not None:
                zero[rows] = found[2]
        self._steps.grad, self._ratio.grad = gradient, ratio
        if self._zero is not None:
            self._zero.grad = zero
        rate = (rates.weight, rates.scale, rates.zero_point)
        for group, now in zip(self._adam.param_groups, rate, strict=False):
            group["lr"] = now
        self._adam.step()
        self._adam.zero_grad()
        self._stay_within()

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """The weight as it is stored."""
        spec, (rows, columns) = self._spec, self._steps.shape
        fake = self._fake(slice(None))
        scale, zero = fake.grid()
        packed = [pack(self._fake(part).codes(self._floats(part)).numpy(), spec.bits) for part in self._parts()]
        return QuantizedTensor(
            spec=spec,
            shape=(rows, columns),
            packed=np.concatenate(packed),
            scale=scale.numpy().astype(FLOAT_DTYPES[str(spec.scale_dtype)]),
            zero_point=None if zero is None else zero.numpy().astype(np.uint8),
        )

    def _parts(self) -> Iterator[slice]:
        """Some rows at a time."""
        rows, columns = self._steps.shape
        count = max(1, _ELEMENTS // columns)
        return (slice(start, min(start + count, rows)) for start in range(0, rows, count))

    def _fake(self, rows: slice) -> FakeQuantize:
        """The grid of some rows, as it is now."""
        return FakeQuantize(
            self._spec, self._unit[rows] * self._ratio[rows], None if self._zero is None else self._zero[rows]
        )

    def _floats(self, rows: slice) -> torch.Tensor:
        """Some rows in the units of the weight."""
        return self._steps[rows] * self._wide(self._unit[rows].abs())

    def _wide(self, groups: torch.Tensor) -> torch.Tensor:
        """Values of groups, (rows, n_groups), for each of their elements."""
        return groups.repeat_interleave(self._spec.group_size, 1)

    @torch.no_grad()
    def _stay_within(self) -> None:
        """Bring floats back that have left the grid."""
        highest = 2**self._spec.bits - 1
        for rows in self._parts():
            fake = self._fake(rows)
            scale, zero = fake.grid()
            if zero is None:
                zero = torch.full_like(scale, 0.5 if self._spec.bits == 1 else 2.0 ** (self._spec.bits - 1))
            relative = scale / self._unit[rows].abs()  # of the sign of the scale: it turns the grid around
            ends = torch.stack((relative * (fake.lowest - zero + _EDGE), relative * (highest - zero - _EDGE)))
            low, high = ends.amin(0), ends.amax(0)
            self._steps[rows] = self._steps[rows].clamp(self._wide(low), self._wide(high))
