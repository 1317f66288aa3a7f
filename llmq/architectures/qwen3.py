"""Qwen 3: norms over each head of queries and keys, and a head size of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.family import decoder, windows_by_layer
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 32, "head_dim": 128, "max_position_embeddings": 32768}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Qwen3's `config.json`: `attention_bias` is for all four projections of the attention."""
    bias = Fields(config).flag("attention_bias", False)
    return decoder(
        config,
        _DEFAULTS,
        windows_by_layer(config),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=False,
        qk_norm=True,
    )
