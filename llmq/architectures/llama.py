"""Llama (1, 2, 3.x), and every model saved as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.family import decoder, n_layers, refuse
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": None, "head_dim": None, "max_position_embeddings": 2048}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Llama's `config.json`: biases are optional, and every layer sees all positions."""
    layers, fields = n_layers(config), Fields(config)
    refuse(config, "sliding_window")
    refuse(config, "layer_types", (["full_attention"] * layers,))
    bias = fields.flag("attention_bias", False)
    return decoder(
        config,
        _DEFAULTS,
        (None,) * layers,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=False,
    )
