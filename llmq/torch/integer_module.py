"""An integer layer as a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmq.torch.kinds import kind_of
from llmq.torch.modules import keep_threads, to_numpy

if TYPE_CHECKING:
    from llmq.spec import QuantScheme
    from llmq.torch.chains import Chain
    from llmq.torch.kinds import Layer

__all__ = ["InputRange", "IntegerModule"]

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
    """

    def __init__(self, layer: Any, replaced: Layer, chain: Chain, scheme: QuantScheme) -> None:
        super().__init__()
        self.layer = layer
        self.chain = chain
        self.scheme = scheme
        self.kind = kind_of(replaced)
        # How many axes one sample has: the rest is batch.
        self._axes = {"Linear": 1, "Conv1d": 2, "Conv2d": 3}.get(self.kind, 0)
        self._shape, self._dtype = replaced.weight.shape, replaced.weight.dtype
        for name in getattr(replaced, "__constants__", ()):
            setattr(self, name, getattr(replaced, name))

    @property
    def input_range(self) -> InputRange | None:
        """What the codes of a static input reach from and to, float32; None where there is no such input."""
        grid = None if self.kind == "Embedding" else self.layer.grids.input
        if grid is None or grid.scale is None or grid.zero_point is None:
            return None
        half = 1 << (grid.spec.bits - 1)
        low, high = (np.asarray(grid.scale * np.float32(end - int(grid.zero_point))) for end in (-half, half - 1))
        return low, high

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

    @keep_threads()
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
