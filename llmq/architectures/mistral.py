"""Mistral 7B and its kin: a Llama without biases whose layers may all slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.family import decoder, n_layers, refuse
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 8, "head_dim": None, "max_position_embeddings": 131072}


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Mistral's `config.json`: a missing `sliding_window` is 4096, a null means none."""
    layers, window = n_layers(config), None
    if config.get("sliding_window", 4096) is not None:
        window = Fields(config).size("sliding_window", 4096)
    # Mistral ignores layer_types, so any that disagree with its one window are another family's.
    refuse(config, "layer_types", (["sliding_attention" if window else "full_attention"] * layers,))
    features = dict.fromkeys(("attention_bias", "output_bias", "mlp_bias", "qk_norm"), False)
    return decoder(config, _DEFAULTS, (window,) * layers, None, **features)
