"""Mixtral: a Mistral with experts in place of every MLP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmq.architectures.experts import mixtral_experts
from llmq.architectures.family import decoder, n_layers, refuse
from llmq.architectures.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.decoder import DecoderConfig

__all__ = ["decoder_config"]

_DEFAULTS = {"n_kv_heads": 8, "head_dim": None, "max_position_embeddings": 131072}

_SILENT = {"rms_norm_eps": 1e-5, "rope_theta": 1e6}
"""What a file without them means."""


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Mixtral's `config.json`: a missing or null `sliding_window` means none."""
    config = _SILENT | dict(config)
    layers, window = n_layers(config), None
    if config.get("sliding_window") is not None:
        window = Fields(config).size("sliding_window")
    refuse(config, "layer_types", (["sliding_attention" if window else "full_attention"] * layers,))
    features = dict.fromkeys(("attention_bias", "output_bias", "mlp_bias", "qk_norm"), False)
    return decoder(config, _DEFAULTS, (window,) * layers, mixtral_experts(config, layers), **features)
