"""What goes into an integer network: told by its first layer, or given and tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmq import integer
from llmq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.integer import Layer

__all__ = ["Shape", "input_of"]

Shape = tuple[int | None, ...]
"""Of one item, without the batch; None where a size is open."""


def input_of(network: Layer, given: Sequence[int | None] | None) -> tuple[Shape, np.dtype[Any]]:
    """Shape of one item, and its dtype: int64 where rows of a table are looked up, else float32.

    Parameters
    ----------
    network : Layer
    given : sequence of int or None, optional
        None takes what the first layer with a weight tells.

    Raises
    ------
    UsageError
        A shape that does not fit the network, or none where no layer tells one.
    """
    first = _first(network)
    shape = _told(first) if given is None else _checked(tuple(given), first)
    if shape is None:
        raise UsageError(
            "no layer tells the shape of the input",
            found=None if first is None else type(first).__name__,
            hint="input_shape=(3, 32, 32): the shape of one item, without the batch",
        )
    dtype = np.dtype(np.int64 if isinstance(first, integer.Embedding) else np.float32)
    _try(network, shape, dtype)
    return shape, dtype


def _first(layer: Any) -> Any:
    """The first layer that tells what comes in: one with a weight, or one behind which shapes are others."""
    if isinstance(layer, integer.Residual):
        return _first(layer.body)
    if isinstance(layer, integer.Sequential):
        found = (first for inner in layer.layers if (first := _first(inner)) is not None)
        return next(found, None)
    passes = (integer.ReLU, integer.MaxPool2d, integer.AvgPool2d)
    return None if isinstance(layer, passes) else layer


def _checked(shape: Shape, first: Any) -> Shape:
    """Compare a shape that is given with what the first layer tells."""
    if any(size is not None and (not isinstance(size, int) or size < 1) for size in shape):
        raise UsageError("input_shape must be sizes of at least 1, or None", found=shape)
    told = _told(first)
    if told is None or isinstance(first, integer.Embedding):
        return shape
    # Linears take any number of axes before the features.
    ends = shape[-1:] if isinstance(first, integer.Linear | integer.FloatLinear) else shape
    if len(ends) != len(told) or any(size not in (None, own) for size, own in zip(told, ends, strict=True)):
        raise UsageError("input_shape does not fit the first layer", expected=told, found=shape)
    return shape


def _told(first: Any) -> Shape | None:
    """Shape of one item that a layer takes, None for what it leaves open; None if it takes any."""
    if isinstance(first, integer.Linear | integer.FloatLinear):
        return (first.weight.shape[1],)
    if isinstance(first, integer.Conv1d | integer.Conv2d):
        images = first.images if isinstance(first, integer.Conv1d) else first
        channels = images.weight.shape[1] * images.geometry.groups
        return (channels, None) if isinstance(first, integer.Conv1d) else (channels, None, None)
    if isinstance(first, integer.FloatConv1d | integer.FloatConv2d):
        channels = first.weight.shape[1] * int(first.geometry.get("groups", 1))
        return channels, *[None] * (first.weight.ndim - 2)
    return (None,) if isinstance(first, integer.Embedding) else None


def _try(network: Layer, shape: Shape, dtype: np.dtype[Any]) -> None:
    """Run one item of zeros through the network, if its sizes are known; UsageError if it does not fit."""
    if None in shape:
        return
    try:
        network(np.zeros((1, *(size or 0 for size in shape)), dtype))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the network does not take items of shape {shape}: {error}") from error
