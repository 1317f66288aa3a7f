"""Where training starts: the scales and zero points of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from llmq.errors import InputError, UsageError
from llmq.learn import SCALE_DTYPES, FakeQuantize
from llmq.methods import METHODS
from llmq.torch.kinds import label
from llmq.torch.modules import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["initial_by_layer", "resolved", "weight_start"]

_DTYPE_NAMES: Final = {dtype: name for name, dtype in SCALE_DTYPES.items()}


def resolved(spec: QuantSpec, weight: torch.Tensor) -> QuantSpec:
    """The spec of a weight's rows, as a `QuantizedTensor` holds it: with a group size, and a dtype for scales.

    Raises
    ------
    ValueError
        Groups that do not divide a row.
    """
    columns = weight.numel() // max(1, len(weight))
    if not spec.divides(columns):
        raise ValueError(f"groups of {spec.group_size} do not divide rows of {columns}")
    return spec.resolve(columns, _DTYPE_NAMES.get(weight.dtype, "float32"))  # type: ignore[arg-type]


def weight_start(name: str, weight: torch.Tensor, spec: QuantSpec, given: QuantizedTensor | None) -> FakeQuantize:
    """Fake quantization of a weight, with given scales or those of least squared error.

    Raises
    ------
    UsageError
        Given scales of another shape or of another grid.
    InputError
        An empty weight, NaN or infinity, or groups that do not divide a row.
    """
    try:
        if weight.numel() == 0:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} is empty")
        rows = resolved(spec, weight)
        if given is None:
            scale, zero_point = _searched(to_numpy(weight), spec, rows)
        else:
            scale, zero_point = _given(name, given, (len(weight), weight.numel() // len(weight)), rows)
    except (ValueError, FloatingPointError) as error:
        raise InputError(str(error), tensor=label(name)) from error
    if spec.strategy == "tensor":
        scale, zero_point = _shared(name, scale), None if zero_point is None else _shared(name, zero_point)
    points = None if zero_point is None else torch.tensor(zero_point, dtype=torch.float32, device=weight.device)
    steps = torch.tensor(scale, dtype=torch.float32, device=weight.device)
    return FakeQuantize(replace(spec, scale_dtype=rows.scale_dtype), steps, points)


def _searched(weight: np.ndarray, spec: QuantSpec, rows: QuantSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales and zero points of least squared error, (rows, n_groups)."""
    flat = weight.reshape(len(weight), -1)
    if spec.strategy == "tensor":
        flat, rows = flat.reshape(1, -1), replace(rows, group_size=flat.size)
    found = METHODS["mse"].quantize(flat, rows)
    scale = found.scale.astype(np.float32)
    zeros = ~flat.reshape(*scale.shape, -1).any(axis=2)
    # A group of zeros has no scale of its own: one like the others', from which its values can move.
    usual = np.abs(scale[~zeros]).mean() if not zeros.all() else 1.0
    return np.where(zeros, np.float32(usual), scale), found.zero_point


def _given(
    name: str, given: QuantizedTensor, shape: tuple[int, int], rows: QuantSpec
) -> tuple[np.ndarray, np.ndarray | None]:
    found = (given.spec.bits, given.spec.symmetric, given.shape, given.scale.shape)
    expected = (rows.bits, rows.symmetric, shape, (shape[0], shape[1] // rows.group_size))
    if found != expected:
        raise UsageError(
            "initial scales do not fit",
            tensor=label(name),
            expected="{} bits, symmetric {}, shape {}, scales {}".format(*expected),
            found="{} bits, symmetric {}, shape {}, scales {}".format(*found),
        )
    return given.scale.astype(np.float32), given.zero_point


def _shared(name: str, values: np.ndarray) -> np.ndarray:
    """The one value of a weight that has one scale."""
    if (values != values.flat[0]).any():
        raise UsageError("initial scales differ between rows, but the weight has one", tensor=label(name))
    return np.asarray(values.flat[0])


def initial_by_layer(
    model: nn.Module, layers: Iterable[str], initial: Mapping[str, QuantizedTensor]
) -> dict[str, QuantizedTensor]:
    """Given weights by the first name of their layer.

    Parameters
    ----------
    model : nn.Module
    layers : iterable of str
        First names of the layers to quantize.
    initial : mapping of str to QuantizedTensor
        By any name of a layer, or that of its weight.

    Raises
    ------
    UsageError
        A name of nothing that is quantized.
    """
    wanted = set(layers)
    firsts = {id(module): name for name, module in model.named_modules()}
    names = {name: firsts[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    names |= {f"{name}.weight" if name else "weight": first for name, first in names.items()}
    found = {}
    for name, tensor in initial.items():
        if names.get(name) not in wanted:
            raise UsageError(
                f"initial {name!r} is no layer to quantize", hint="names are those of model.named_modules()"
            )
        found[names[name]] = tensor
    return found
