"""Weights of a model in training as checkpoints hold them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmq.errors import UsageError
from llmq.spec import FLOAT_DTYPES, QuantizedTensor
from llmq.torch.fake_layers import fake_layers
from llmq.torch.modules import keep_threads
from llmq.torch.starts import resolved
from llmq_kernels.pack import pack

if TYPE_CHECKING:
    from torch import nn

    from llmq.torch.fake_layers import FakeLayer

__all__ = ["quantized_tensors"]


@keep_threads()
def quantized_tensors(model: nn.Module) -> dict[str, QuantizedTensor]:
    """Quantized weights of a model that `prepare_qat` returned, as they are now.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict of str to QuantizedTensor
        By the name of the weight (`model.layers.0.mlp.up_proj.weight`). `dequantize()` gives the values by which the
        layer multiplies, filters as rows; norms after convolutions are not folded in.

    Raises
    ------
    UsageError
        A model without layers in training.
    """
    found = fake_layers(model)
    if not found:
        raise UsageError("nothing here is trained", hint="quantized_tensors takes what prepare_qat returns")
    return {f"{name}.weight" if name else "weight": _tensor(layer) for name, layer in found.items()}


@torch.no_grad()
def _tensor(layer: FakeLayer) -> QuantizedTensor:
    fake, weight = layer.fake_weight, layer.latent
    spec = resolved(fake.spec, weight)
    rows, columns = len(weight), weight.numel() // len(weight)
    shape = rows, columns // spec.group_size
    scale, zero_point = fake.grid()
    codes = fake.codes(weight).reshape(rows, columns).cpu().numpy()
    if zero_point is not None:
        # One zero point of all rows becomes one of each.
        zero_point = zero_point.to("cpu", torch.uint8).expand(shape)
    return QuantizedTensor(
        spec=replace(spec, strategy="group"),
        shape=(rows, columns),
        packed=pack(codes, spec.bits),
        scale=np.ascontiguousarray(scale.cpu().expand(shape).numpy()).astype(FLOAT_DTYPES[str(spec.scale_dtype)]),
        zero_point=None if zero_point is None else np.ascontiguousarray(zero_point.numpy()),
    )
