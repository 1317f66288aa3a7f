"""Model architectures: which tensors a model has, what each one does, and how its decoder is configured.

A new one is a file named as `config.json` names its `model_type`, and a row of `ARCHITECTURES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.architectures import llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe
from llmq.architectures.decoder import DecoderConfig
from llmq.architectures.rope import Rope
from llmq.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ARCHITECTURES", "DecoderConfig", "Rope", "decoder_config"]

ARCHITECTURES: Final[dict[str, Callable[[Mapping[str, Any]], DecoderConfig]]] = {
    "llama": llama.decoder_config,
    "mistral": mistral.decoder_config,
    "mixtral": mixtral.decoder_config,
    "qwen2": qwen2.decoder_config,
    "qwen2_moe": qwen2_moe.decoder_config,
    "qwen3": qwen3.decoder_config,
    "qwen3_moe": qwen3_moe.decoder_config,
}
"""Readers of `config.json` by `model_type`."""


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a `config.json` of any known architecture.

    Raises
    ------
    InputError
        There is no `model_type`, or a value is missing or absurd.
    UnsupportedError
        An architecture, or a feature of one, that the runtime does not implement.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError("model_type is missing", file="config.json", hint="a model folder needs its config.json")
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"llmq cannot run models of type {model_type!r}",
            file="config.json",
            expected=f"one of {', '.join(ARCHITECTURES)}",
            hint="llmq quantize works on it all the same; run the result with transformers or vLLM",
        )
    return ARCHITECTURES[model_type](config)
