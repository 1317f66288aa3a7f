"""Layers that train for their integers: they compute in whole steps what the integer layers will compute.

Inputs and weights are whole numbers in float32, and their products are scaled once: sums up to 2**24 are exact, as they
are in integers, and so are the results. Gradients are those of fake quantization (`llmq.learn`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import nn

from llmq.errors import InputError
from llmq.integer import ActivationGrid
from llmq.learn import FakeQuantize, found_steps
from llmq.observers import MSE
from llmq.torch.fake_parts import Parts, add_bias, folded, raised
from llmq.torch.kinds import label
from llmq.torch.modules import keep_threads, to_numpy

if TYPE_CHECKING:
    from llmq.spec import QuantScheme, QuantSpec
    from llmq.torch.chains import Chain

__all__ = ["FAKE_LAYERS", "FakeConv1d", "FakeConv2d", "FakeEmbedding", "FakeLayer", "FakeLinear", "fake_layers"]


class FakeLayer(nn.Module):
    """What a layer gains when it is to be trained; the layer itself becomes one, and keeps its parameters and hooks.

    Attributes
    ----------
    fake_weight : FakeQuantize
        Of the weight; its steps are trained.
    fake_input : FakeQuantize or None
        Of a static input.
    norm : nn.BatchNorm1d, nn.BatchNorm2d or None
        Computed by the layer: after it while the norm trains, else folded into its steps and its bias.
    seen : bool tensor () or None
        Whether the range of a static input is known.
    chain : Chain
    scheme : QuantScheme
    """

    axes: ClassVar[int] = 0
    """Axes of one sample: the rest is batch."""

    fake_weight: FakeQuantize
    fake_input: FakeQuantize | None
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    seen: torch.Tensor | None
    chain: Chain
    scheme: QuantScheme

    @property
    def latent(self) -> nn.Parameter:
        """The float weight that is trained; in the state dict it is `weight`."""
        found = self._parameters["weight"]
        assert found is not None
        return found

    @property
    def weight(self) -> torch.Tensor:
        """What the layer multiplies by before its norm, rounded to the grid; with gradients, a new tensor each time."""
        return self.fake_weight(self.latent)  # type: ignore[no-any-return]

    def learn_range(self, low: Any, high: Any) -> None:
        """Begin with the range that an observer chose for a static input, float32 () each."""
        assert self.fake_input is not None
        assert self.seen is not None
        spec = self._input_spec
        grid = ActivationGrid.of(spec, (float(low), float(high)))
        assert grid.scale is not None
        assert grid.zero_point is not None
        with torch.no_grad():
            self.fake_input.scale.fill_(float(grid.scale))
            if self.fake_input.zero_point is not None:
                self.fake_input.zero_point.fill_(int(grid.zero_point) + (1 << (spec.bits - 1)))
            self.seen.fill_(True)

    def parts(self, *, fold: bool = True) -> Parts:
        """Whole numbers, scales and bias as the integer layer gets them, with the norm folded in or not."""
        found = Parts.of(self.fake_weight, self.latent, self._parameters.get("bias"))
        if self.norm is not None and fold:
            found = folded(found, self.norm)
        static = self.fake_input is not None and found.scale.shape[1] == 1
        return raised(found, self.fake_input.grid()[0] if static and self.fake_input is not None else None)

    @property
    def _input_spec(self) -> QuantSpec:
        assert self.scheme.input is not None
        return self.scheme.input


class _FakeProduct(FakeLayer):
    """A layer that multiplies."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that torch's layers give it
        """Compute the layer as its integers will; see the layer it was."""
        training_norm = self.norm is not None and self.norm.training
        if self.scheme.input is None and self.norm is None:
            return self._product(input, self.weight, self._parameters["bias"])
        parts = self.parts(fold=not training_norm)
        y = self._multiply(input, parts, round_bias=not training_norm)
        if training_norm:
            assert self.norm is not None
            return _normed(self.norm, y, self.axes)
        return y

    def _multiply(self, x: torch.Tensor, parts: Parts, *, round_bias: bool) -> torch.Tensor:
        shape = self.latent.shape
        if self.scheme.input is None:
            bias = None if parts.bias is None else parts.bias.to(x.dtype)
            return self._product(x, parts.values().reshape(shape).to(x.dtype), bias)
        steps, s_x = self._encode(x)
        if parts.scale.shape[1] > 1:
            y = self._product(steps, parts.values().reshape(shape), None) * s_x
            return (y if parts.bias is None else y + self._along(parts.bias)).to(x.dtype)
        sums = self._product(steps, parts.integers.reshape(shape), None)
        s_w = self._along(parts.scale[:, 0])
        bias = None if parts.bias is None else self._along(parts.bias)
        if bias is None or not round_bias:
            y = sums * (s_x * s_w)
            return (y if bias is None else y + bias).to(x.dtype)
        return add_bias(sums, bias, s_x, s_w).to(x.dtype)

    def _encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole steps of the input, and the step."""
        if self.fake_input is None:
            return found_steps(x, self._input_spec, self.axes)
        assert self.seen is not None
        if not self.seen and x.numel():
            self._look(x)
        return self.fake_input.steps(x)

    @keep_threads()
    def _look(self, x: torch.Tensor) -> None:
        """Begin with the first inputs.

        Of least squared error, as for weights: from extremes, and from twice the mean as in LSQ, training ended worse.
        """
        observer = MSE(self._input_spec)
        try:
            observer.observe(to_numpy(x))
        except (TypeError, ValueError) as error:
            raise InputError(str(error), tensor=label(self.chain.layer)) from error
        self.learn_range(*observer.range())

    def _along(self, values: torch.Tensor) -> torch.Tensor:
        """Let a value for each row broadcast against the results."""
        return values.reshape((-1,) + (1,) * (self.axes - 1))

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError


class FakeLinear(_FakeProduct, nn.Linear):  # type: ignore[override]  # the weight is read only
    """A linear that trains for its integers."""

    axes = 1

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x, weight, bias)


class FakeConv1d(_FakeProduct, nn.Conv1d):  # type: ignore[override]
    """A convolution along one axis that trains for its integers."""

    axes = 2

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = self._conv_forward(x, weight, bias)
        return y


class FakeConv2d(_FakeProduct, nn.Conv2d):  # type: ignore[override]
    """A convolution of images that trains for its integers."""

    axes = 3

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = self._conv_forward(x, weight, bias)
        return y


class FakeEmbedding(FakeLayer, nn.Embedding):  # type: ignore[override]
    """A table whose rows train for their integers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that torch's layers give it
        """Look up rounded rows; gradients of the table are dense."""
        freq = self.scale_grad_by_freq
        return nn.functional.embedding(input, self.weight, self.padding_idx, scale_grad_by_freq=freq)


FAKE_LAYERS: Final[dict[type[nn.Module], type[FakeLayer]]] = {
    nn.Linear: FakeLinear,
    nn.Conv1d: FakeConv1d,
    nn.Conv2d: FakeConv2d,
    nn.Embedding: FakeEmbedding,
}
"""What the layers of `llmq.torch.kinds.KINDS` become."""


def fake_layers(model: nn.Module) -> dict[str, FakeLayer]:
    """Layers in training by their first names, in the order of `named_modules`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FakeLayer)}


def _normed(norm: nn.Module, y: torch.Tensor, axes: int) -> torch.Tensor:
    """A batch norm of results, also of one image without a batch, of which torch's norms know nothing."""
    found: torch.Tensor = norm(y) if y.dim() > axes else norm(y[None])[0]
    return found
