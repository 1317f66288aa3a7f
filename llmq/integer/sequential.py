"""Layers one after the other, and blocks whose input is added to their output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmq.integer.residual import Add

if TYPE_CHECKING:
    import numpy as np

    from llmq.integer.activations import Quantized

__all__ = ["Layer", "Residual", "Sequential"]


class Layer(Protocol):
    """Takes activations, floats or integers, and gives such."""

    def __call__(self, x: np.ndarray | Quantized, /) -> np.ndarray | Quantized:
        """Run the layer."""
        ...


@dataclass(frozen=True)
class Sequential:
    """Layers one after the other.

    Parameters
    ----------
    layers : tuple of Layer
    """

    layers: tuple[Layer, ...]

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run all layers."""
        for layer in self.layers:
            x = layer(x)
        return x

    def reference(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Specify the layers in plain NumPy, those with weights in int64."""
        for layer in self.layers:
            x = _reference_of(layer)(x)
        return x


@dataclass(frozen=True)
class Residual:
    """A block to whose output its input is added, as it is or through a shortcut.

    Parameters
    ----------
    body : Sequential
    shortcut : Sequential or None
    add : Add
    """

    body: Sequential
    shortcut: Sequential | None = None
    add: Add = field(default_factory=Add)

    def __call__(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Run both branches, and add them."""
        return self.add(self.body(x), x if self.shortcut is None else self.shortcut(x))

    def reference(self, x: np.ndarray | Quantized) -> np.ndarray | Quantized:
        """Specify the block in plain NumPy."""
        return self.add(self.body.reference(x), x if self.shortcut is None else self.shortcut.reference(x))


def _reference_of(layer: Layer) -> Layer:
    found: Layer = getattr(layer, "reference", layer)
    return found
