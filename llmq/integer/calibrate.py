"""Post-training quantization in NumPy alone: run float layers over data, then make integer layers of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmq.integer.embedding import Embedding
from llmq.integer.floats import FloatLayer
from llmq.integer.residual import Add
from llmq.integer.sequential import Residual, Sequential
from llmq.integer.shapes import AdaptiveAvgPool2d, AvgPool2d
from llmq.observers import observer_class
from llmq.spec import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmq.observers import Observer
    from llmq.spec import QuantSpec

__all__ = ["calibrate"]

Range = tuple[float, float]


def calibrate(
    layers: Sequence[Any] | Sequential, batches: Iterable[np.ndarray], scheme: QuantScheme | None = None
) -> Sequential:
    """Quantize a network, with ranges of activations from data that it was neither trained nor is tested on.

    Parameters
    ----------
    layers : sequence
        `FloatLinear`, `FloatConv1d`, `FloatConv2d`, `Residual` blocks and `Sequential`s of such, layers without weights
        (`ReLU`, pooling, `Flatten`), and an `Embedding` that is quantized already.
    batches : iterable of float32 (n, ...)
        Integers where the first layer is an `Embedding`. Read once; there may be any number of them, for observers
        take bounded memory.
    scheme : QuantScheme, optional
        Of layers that have none of their own; `QuantScheme()` if none. With an output, integers flow from layer to
        layer, and the last layer with a weight gives floats; without, each layer rounds its own input.

    Returns
    -------
    Sequential

    Raises
    ------
    ValueError
        No data, or what observers and layers refuse.

    Examples
    --------
    >>> from llmq.integer import FloatLinear, ReLU
    >>> network = [FloatLinear(np.eye(2, dtype=np.float32)), ReLU()]
    >>> quantized = calibrate(network, [np.array([[-1.0, 254.0]], np.float32)])
    >>> quantized(np.array([[-1.0, 100.0]], np.float32)).round(2).tolist()
    [[0.0, 100.0]]
    """
    default = scheme or QuantScheme()
    watched = [_watch(layer, default) for layer in _flat(layers)]
    looks_up = bool(watched) and isinstance(watched[0].layer, Embedding)
    for batch in batches:
        x = np.asarray(batch) if looks_up else np.asarray(batch, np.float32)
        for layer in watched:
            x = layer.run(x)
    return Sequential(tuple(_quantize(watched, None, None)))


@dataclass(frozen=True, eq=False)
class _Watched:
    """A layer, what it sees, and what its branches give.

    `input` watches what comes in; `branches` are those of a `Residual`, each with an observer of its results.
    """

    layer: Any
    scheme: QuantScheme
    input: Observer | None
    branches: tuple[tuple[list[_Watched], Observer], ...] = ()

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run the layer in floating point, watching."""
        if self.input is not None:
            self.input.observe(x)
        if not isinstance(self.layer, Residual):
            return np.asarray(self.layer(x))
        results = []
        for branch, observer in self.branches:
            value = x
            for inner in branch:
                value = inner.run(value)
            observer.observe(value)
            results.append(value)
        return np.asarray(results[0] + (results[1] if len(results) > 1 else x), np.float32)


def _flat(layers: Sequence[Any] | Sequential) -> list[Any]:
    """Put the layers of nested Sequentials one after the other."""
    flat: list[Any] = []
    for layer in layers.layers if isinstance(layers, Sequential) else layers:
        flat += _flat(layer) if isinstance(layer, Sequential) else [layer]
    return flat


def _watch(layer: Any, default: QuantScheme) -> _Watched:
    if isinstance(layer, FloatLayer):
        scheme = layer.scheme or default
        static = scheme.input is not None and not scheme.input.dynamic
        return _Watched(layer, scheme, _observer(scheme.input) if static and scheme.input else None)
    spec = default.output or default.input or default.weight
    if isinstance(layer, Residual):
        bodies = [layer.body] if layer.shortcut is None else [layer.body, layer.shortcut]
        branches = tuple(([_watch(inner, default) for inner in _flat(body)], _observer(spec)) for body in bodies)
        return _Watched(layer, default, _observer(spec), branches)
    # Means are smaller than what they are of: a range that is found behind them would clip it.
    narrows = isinstance(layer, AvgPool2d | AdaptiveAvgPool2d) and default.output is not None
    return _Watched(layer, default, _observer(spec) if narrows else None)


def _observer(spec: QuantSpec) -> Observer:
    return observer_class(spec)(replace(spec, strategy="tensor", dynamic=False))


def _range(observer: Observer) -> Range:
    low, high = observer.range()
    return float(low), float(high)


def _ranges(watched: Sequence[_Watched], given: Range | None) -> list[Range | None]:
    """Ranges of the integers that each layer gets; None for layers that pass on whatever they get, and for floats.

    `given` is the range of what comes in, None if that is floats.
    """
    found: list[Range | None] = []
    current, floats = given, given is None
    for one in watched:
        if one.input is None or (floats and not isinstance(one.layer, FloatLayer | Residual)):
            found.append(None)
        else:
            found.append(current or _range(one.input))
        if isinstance(one.layer, FloatLayer | Residual):
            current, floats = None, one.scheme.output is None
        else:
            current = found[-1] or current
    return found


def _quantize(watched: Sequence[_Watched], given: Range | None, wanted: Range | None) -> list[Any]:
    """Make layers of integers, from the last to the first.

    `given` is the range of the integers that come in, None for floats; `wanted` that of those that go out.
    """
    made: list[Any] = []
    for one, own in zip(reversed(watched), reversed(_ranges(watched, given)), strict=True):
        if isinstance(one.layer, Residual):
            made.append(_quantize_block(one, own if one.scheme.output is not None else None, wanted))
        elif isinstance(one.layer, FloatLayer):
            target = wanted if own is not None and one.scheme.output is not None else None
            scheme = one.scheme if target is not None else replace(one.scheme, output=None)
            made.append(one.layer.quantize(scheme, own, target))
        else:
            made.append(one.layer)
            wanted = own or wanted
            continue
        # What comes before gives integers of this layer's grid.
        wanted = own
    return made[::-1]


def _quantize_block(one: _Watched, given: Range | None, wanted: Range | None) -> Residual:
    spec = one.scheme.output
    targets = [_range(observer) if spec is not None else None for _, observer in one.branches]
    branches = [
        Sequential(tuple(_quantize(branch, given, target)))
        for (branch, _), target in zip(one.branches, targets, strict=True)
    ]
    add = Add() if spec is None or wanted is None else Add.quantize(spec, wanted)
    return Residual(branches[0], branches[1] if len(branches) > 1 else None, add)
