"""How far each layer of a converted model is from the float one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from llmq.errors import UnsupportedError, UsageError
from llmq.evaluate.sums import ErrorSums, decibels
from llmq.torch.integer_module import IntegerModule
from llmq.torch.kinds import kind_of, label
from llmq.torch.modules import call, keep_to_modules, modules_by_name, skeleton, to_numpy

__all__ = ["LayerError", "Report", "report"]


@dataclass(frozen=True)
class LayerError:
    """The error of one layer over all its outputs.

    Parameters
    ----------
    name, kind : str
        Of the module.
    bits : int
        Of a weight's code.
    nmse, sqnr_db, cosine, max_error : float
        Of the layer alone, given the inputs that the float model has there; as in `llmq compare`.
    saturation : float
        Share of those inputs that lie beyond the static range and were clipped; 0 for other inputs.
    accumulated_nmse : float
        Of the same outputs when the layers before are quantized too.
    """

    name: str
    kind: str
    bits: int
    nmse: float
    sqnr_db: float
    cosine: float
    max_error: float
    saturation: float
    accumulated_nmse: float


@dataclass(frozen=True)
class Report:
    """Errors of the layers, in the order of `named_modules`; `str` makes a table of them."""

    layers: tuple[LayerError, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """One dict a layer."""
        return [asdict(layer) for layer in self.layers]

    def __str__(self) -> str:
        heading = ("layer", "kind", "bits", "NMSE", "SQNR dB", "cosine", "max error", "saturation", "accumulated NMSE")
        rows = [heading, *(_cells(layer) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _cells(layer: LayerError) -> tuple[str, ...]:
    return (
        label(layer.name),
        layer.kind,
        str(layer.bits),
        f"{layer.nmse:.2e}",
        f"{layer.sqnr_db:.1f}",
        f"{layer.cosine:.5f}",
        f"{layer.max_error:.2e}",
        f"{100 * layer.saturation:.2f} %",
        f"{layer.accumulated_nmse:.2e}",
    )


def report(model: nn.Module, converted: nn.Module, inputs: Any) -> Report:
    """Measure each integer layer against the float layers that it stands for.

    Parameters
    ----------
    model : nn.Module
        The float model that was given to `prepare` or `prepare_qat`, or the one that was trained, of which only the
        rounding of sums is left to see; it runs in eval mode and is not changed.
    converted : nn.Module
    inputs : tensor, tuple, dict, or iterable of them
        Arguments of one call (a tensor alone, a tuple of arguments, a dict of keyword arguments), or of several.

    Raises
    ------
    UsageError
        Nothing is converted, the models do not belong to each other, or there are no inputs.
    UnsupportedError
        A layer that was not called equally often in both.
    """
    layers = {name: module for name, module in converted.named_modules() if isinstance(module, IntegerModule)}
    if not layers:
        raise UsageError("nothing here was converted", hint="report(model, convert(prepared), inputs)")
    reference, ours = skeleton(model).eval(), skeleton(converted).eval()
    keep_to_modules(reference)
    floats, integers = modules_by_name(reference), modules_by_name(ours)
    watches = {}
    for name, layer in layers.items():
        if name not in floats or kind_of(floats[name]) != layer.kind or not layer.fits(floats[name]):
            raise UsageError(
                "is in the converted model only", tensor=label(name), hint="give the model that was prepared"
            )
        watches[name] = _Watch(layer)
        watches[name].watch(floats[name], floats[layer.chain.last], integers[name])
    ran = False
    for batch in [inputs] if isinstance(inputs, torch.Tensor | tuple | dict) else inputs:
        ran = True
        call(reference, batch)
        call(ours, batch)
        for name, watch in watches.items():
            watch.expect_nothing(name)
    if not ran:
        raise UsageError("inputs hold nothing to run", hint="report(model, converted, inputs)")
    return Report(tuple(watch.error(name) for name, watch in watches.items()))


def _clipped(layer: IntegerModule, x: torch.Tensor) -> int:
    """How many of its inputs a layer clips to the ends of their static range."""
    grid = None if layer.kind == "Embedding" else layer.layer.grids.input
    if grid is None or grid.scale is None or grid.zero_point is None:
        return 0
    half = 1 << (grid.spec.bits - 1)
    codes = np.rint(to_numpy(x) / grid.scale) + grid.zero_point
    return int(np.count_nonzero((codes < (grid.spec.range == "narrow") - half) | (codes > half - 1)))


class _Watch:
    """Sums up the error of one layer while both models run, the float one first."""

    def __init__(self, layer: IntegerModule) -> None:
        self._layer = layer
        self._alone, self._accumulated = ErrorSums(), ErrorSums()
        self._clipped = self._seen = 0
        self._ours: list[np.ndarray] = []
        self._outputs: list[np.ndarray] = []

    def watch(self, first: nn.Module, last: nn.Module, ours: nn.Module) -> None:
        """Hook onto the float layer, the last module of its chain, and the integer layer."""
        first.register_forward_pre_hook(self._given, with_kwargs=True)
        last.register_forward_hook(self._made)
        ours.register_forward_hook(self._made_by_integers)

    def _given(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        self._ours.append(to_numpy(self._layer(x)))
        self._clipped += _clipped(self._layer, x)
        self._seen += x.numel()

    def _made(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        self._outputs.append(to_numpy(output).copy())  # a ReLU may change it in place
        self._alone.add(self._outputs[-1], self._ours.pop())

    def _made_by_integers(self, _module: nn.Module, _args: Any, output: torch.Tensor) -> None:
        if self._outputs:
            self._accumulated.add(self._outputs.pop(0), to_numpy(output))

    def expect_nothing(self, name: str) -> None:
        """Check that both models called the layer equally often."""
        if self._outputs or self._ours:
            raise UnsupportedError("was called less often after conversion", tensor=label(name))

    def error(self, name: str) -> LayerError:
        """What the sums say."""
        alone = self._alone
        return LayerError(
            name=name,
            kind=self._layer.kind,
            bits=self._layer.scheme.weight.bits,
            nmse=alone.nmse,
            sqnr_db=decibels(alone.nmse),
            cosine=alone.cosine,
            max_error=alone.largest,
            saturation=self._clipped / self._seen if self._seen else 0.0,
            accumulated_nmse=self._accumulated.nmse,
        )
