"""Qwen 2 and 2.5: query, key and value projections always have biases, the output projection never."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.family import decoder, windows_by_layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 32, "head_dim": None, "max_position_embeddings": 32768}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Qwen2's `config.json`."""
    return decoder(
        config,
        _DEFAULTS,
        windows_by_layer(config),
        attention_bias=True,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )
