"""Put integer layers where a prepared model has float ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmq import integer
from llmq.errors import InputError, LlmqError, UnsupportedError, UsageError
from llmq.torch.fold import Absorbed
from llmq.torch.kinds import label, layer_of, padding
from llmq.torch.modules import modules_by_name, replace_module, skeleton, to_numpy
from llmq.torch.prepare import calibrations

if TYPE_CHECKING:
    from llmq.spec import QuantScheme
    from llmq.torch.chains import Chain
    from llmq.torch.kinds import Layer
    from llmq.torch.prepare import Calibration

__all__ = ["InputRange", "IntegerModule", "convert"]

InputRange = tuple[np.ndarray, np.ndarray]


class IntegerModule(nn.Module):
    """An integer layer in a torch model: floats in, floats out, on the CPU and without gradients.

    Parameters
    ----------
    layer : llmq.integer.Linear, Conv1d, Conv2d or Embedding
        Computes.
    replaced : nn.Linear, nn.Conv1d, nn.Conv2d or nn.Embedding
        The layer it stands for; its sizes and settings (`in_features`, `stride`, ...) can be read here too.
    chain : Chain
        What it takes over.
    scheme : QuantScheme
        How it is quantized.
    input_range : (float32, float32) or None
        Ends of the static range of its inputs.
    """

    def __init__(
        self, layer: Any, replaced: Layer, chain: Chain, *, scheme: QuantScheme, input_range: InputRange | None = None
    ) -> None:
        super().__init__()
        self.layer = layer
        self.chain = chain
        self.scheme = scheme
        self.input_range = input_range
        self.kind = type(replaced).__name__
        # How many axes one sample has: the rest is batch.
        self._axes = {"Linear": 1, "Conv1d": 2, "Conv2d": 3}.get(self.kind, 0)
        self._shape, self._dtype = replaced.weight.shape, replaced.weight.dtype
        for name in getattr(replaced, "__constants__", ()):
            setattr(self, name, getattr(replaced, name))

    @property
    def weight(self) -> torch.Tensor:
        """What the integers of the weight stand for, for code that reads a module's weight; a new tensor each time."""
        return torch.from_numpy(self.layer.weight.values.reshape(self._shape).copy()).to(self._dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, likewise."""
        bias = getattr(self.layer, "bias", None)
        return None if bias is None else torch.from_numpy(bias.copy()).to(self._dtype)

    def fits(self, replaced: nn.Module) -> bool:
        """Whether a layer has the sizes of the one that this one stands for."""
        return getattr(replaced, "weight", None) is not None and replaced.weight.shape == self._shape

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, scales, zero points and biases."""
        bias = getattr(self.layer, "bias", None)
        return int(self.layer.weight.nbytes + (0 if bias is None else bias.nbytes))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that torch's layers give it
        """Compute a linear, a convolution (and the ReLU after it), or rows of a table.

        Parameters
        ----------
        input : float tensor of any dtype, or integer tensor of indices for an embedding
            With the shapes that the layer it stands for takes.

        Returns
        -------
        tensor
            On the device of the input and of its dtype; an embedding's are of the dtype of its table.
        """
        if self.kind == "Embedding":
            return torch.from_numpy(self.layer(input.detach().cpu().numpy())).to(input.device, self._dtype)
        if not input.is_floating_point():
            raise TypeError(f"input must be a float tensor, not {input.dtype}")
        y = self.compute(to_numpy(input))
        return torch.from_numpy(y).to(input.device, input.dtype)

    def compute(self, x: np.ndarray) -> np.ndarray:
        """The same for float32 arrays."""
        batched = x if x.ndim > self._axes else x[None]
        y: np.ndarray = self.layer(batched)
        if self.chain.relu is not None:
            y = np.maximum(y, np.float32(0))
        return y if x.ndim > self._axes else y[0]

    def extra_repr(self) -> str:
        """What it stands for, in `repr`."""
        return " + ".join((self.kind, *(name for name in (self.chain.norm, self.chain.relu) if name is not None)))


def convert(prepared: nn.Module) -> nn.Module:
    """Make the model of integer layers of a prepared one that has seen its calibration data.

    Parameters
    ----------
    prepared : nn.Module
        From `prepare`. It is left as it is, and can be shown more data and converted again.

    Returns
    -------
    nn.Module
        Of the same class, with the same signature; what was not quantized shares its parameters with `prepared`.

    Raises
    ------
    UsageError
        The model does not come from `prepare`, or a layer with static inputs has not seen any.
    UnsupportedError
        Folded modules were not called together.
    """
    found = calibrations(prepared)
    if not found:
        raise UsageError("nothing here was prepared", hint="convert takes what llmq.torch.prepare returns")
    for name, calibration in found.items():
        _check_calls(name, calibration)
    converted = skeleton(prepared)
    modules = modules_by_name(converted)
    for name, calibration in found.items():
        chain = calibration.chain
        replaced, input_range = layer_of(modules, name), _input_range(name, calibration)
        layer = _integer_layer(name, replaced, calibration.scheme, input_range)
        module = IntegerModule(layer, replaced, chain, scheme=calibration.scheme, input_range=input_range)
        for part in (chain.norm, chain.relu):
            if part is not None:
                replace_module(converted, part, Absorbed(label(name)))
        if not name:
            return module
        replace_module(converted, name, module)
    return converted


def _check_calls(name: str, calibration: Calibration) -> None:
    """Check that what was folded was called as often as what it was folded into."""
    chain, calls = calibration.chain, calibration.calls
    for part in (chain.norm, chain.relu):
        if part is not None and calls[part] != calls[name]:
            raise UnsupportedError(
                f"called {calls[name]} times, but {part}, which it takes over, {calls[part]} times",
                tensor=label(name),
                hint=f"overrides={{{name!r}: None}} keeps it in float",
            )


def _integer_layer(name: str, module: Layer, scheme: QuantScheme, input_range: InputRange | None) -> Any:
    weight = to_numpy(module.weight)
    try:
        if isinstance(module, nn.Embedding):
            return integer.Embedding.quantize(weight, scheme.weight)
        settings: dict[str, Any] = {"input_range": input_range}
        bias = None if module.bias is None else to_numpy(module.bias)
        if isinstance(module, nn.Linear):
            return integer.Linear.quantize(weight, bias, scheme, **settings)
        settings |= {"stride": module.stride, "padding": padding(module)}
        settings |= {"dilation": module.dilation, "groups": module.groups}
        kind = integer.Conv2d if isinstance(module, nn.Conv2d) else integer.Conv1d
        return kind.quantize(weight, bias, scheme, **settings)
    except LlmqError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(str(error), tensor=label(name)) from error


def _input_range(name: str, calibration: Calibration) -> InputRange | None:
    if calibration.observer is None:
        return None
    try:
        return calibration.observer.range()
    except ValueError as error:
        raise UsageError(
            "has not seen any input, and its range is static",
            tensor=label(name),
            hint="call the prepared model on calibration data before convert, or use dynamic inputs",
        ) from error
