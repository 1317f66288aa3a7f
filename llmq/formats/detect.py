"""Telling that a checkpoint is quantized already, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.formats.schemes import QUANT_METHOD, quantization_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["already_quantized"]

# A tensor name's ending, and the ending of another tensor that must stand beside it.
_SIGNS: Final = (
    (".weight_packed", "", QUANT_METHOD),
    (".qweight", "", "gptq or awq"),
    (".weight_scale_inv", "", "fp8"),
    (".quant_state.bitsandbytes__nf4", "", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "", "bitsandbytes"),
    (".SCB", "", "bitsandbytes"),
    ("_blocks", "_scales", "mxfp4"),
    (".biases", ".scales", "mlx"),
    (".weight_scale", "", "an unnamed method with weight_scale"),
)


def already_quantized(config: Mapping[str, Any], tensor_names: Iterable[str]) -> str | None:
    """Name the method a checkpoint is quantized by, as its configuration or its tensors tell; None if it is not.

    Parameters
    ----------
    config : mapping
        ``config.json``.
    tensor_names : iterable of str
        Names of all tensors.

    >>> already_quantized({"quantization_config": {"quant_method": "gptq", "bits": 4}}, [])
    'gptq'
    >>> already_quantized({}, ["model.layers.0.mlp.up_proj.qweight"])
    'gptq or awq'
    """
    section = quantization_section(config)
    if section:
        return str(section.get("quant_method") or section.get("quant_algo") or "an unnamed method")
    if isinstance(config.get("quantization"), dict):
        return "mlx"
    names = set(tensor_names)
    for suffix, partner, method in _SIGNS:
        found = (name for name in names if name.endswith(suffix))
        if any(not partner or name.removesuffix(suffix) + partner in names for name in found):
            return method
    return None
