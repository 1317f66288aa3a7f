"""Qwen 3 with experts: a Qwen 3 in which most blocks have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.experts import qwen_experts
from llmq.architectures.family import decoder, n_layers, refuse
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 4, "head_dim": None, "max_position_embeddings": 32768}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Qwen3-MoE's `config.json`; sliding windows, which no published one has, are refused."""
    layers = n_layers(config)
    refuse(config, "use_sliding_window", (False,))
    refuse(config, "layer_types", (["full_attention"] * layers,))
    bias = Fields(config).flag("attention_bias", False)
    return decoder(
        config,
        _DEFAULTS,
        (None,) * layers,
        qwen_experts(config, layers, (128, 8, 768), None),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=False,
        qk_norm=True,
    )
