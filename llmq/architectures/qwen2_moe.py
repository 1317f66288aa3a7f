"""Qwen 1.5 and 2 with experts: a Qwen 2 in which most blocks have experts, and a shared one beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.experts import qwen_experts
from llmq.architectures.family import decoder, n_layers, windows_by_layer
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 16, "head_dim": None, "max_position_embeddings": 32768}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Qwen2-MoE's `config.json`: `qkv_bias` is set where it is silent."""
    return decoder(
        config,
        _DEFAULTS,
        windows_by_layer(config),
        qwen_experts(config, n_layers(config), (60, 4, 1408), 5632),
        attention_bias=Fields(config).flag("qkv_bias", True),
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )
