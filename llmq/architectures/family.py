"""What the config files of all Llama-like families share, and what of them is refused because it is not implemented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.architectures.decoder import DecoderConfig
from llmq.architectures.fields import Fields
from llmq.architectures.rope import rope
from llmq.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures.experts import Experts

__all__ = ["decoder", "n_layers", "refuse", "windows_by_layer"]

# Each key with the values that change nothing; null and a missing key always do. Any other value is refused.
_HARMLESS: Final[dict[str, tuple[Any, ...]]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_sinks": (False,),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1.0,),
    "final_logit_softcapping": (),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "llama_4_scaling": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0, 1),
    "partial_rotary_factor": (1.0,),
    "per_layer_config": ({},),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1.0,),
    "rope_interleaved": (False,),
    "scale_emb": (1.0,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
}
_EXPERTS: Final = ("num_experts", "num_local_experts")
_SILU: Final = ("silu", "swish")
_ALL_LAYERS: Final = ("full_attention", "attention")


def refuse(config: Mapping[str, Any], key: str, harmless: tuple[Any, ...] = ()) -> None:
    """Raise UnsupportedError if `key` has a value other than null and the harmless ones."""
    value = config.get(key)
    if value is not None and value not in harmless:
        raise UnsupportedError(f"{key} is not implemented", file="config.json", found=repr(value)[:60])


def decoder(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    windows: tuple[int | None, ...],
    experts: Experts | None = None,
    **features: bool,
) -> DecoderConfig:
    """Read what all families spell alike.

    Parameters
    ----------
    config : mapping
        `config.json`.
    defaults : mapping
        The family's `n_kv_heads` (None means as many as heads), `head_dim` (None means hidden size over heads) and
        `max_position_embeddings` where the file is silent.
    windows : tuple of (int or None)
        Sliding window of each layer.
    experts : Experts, optional
        What the family has in place of MLPs.
    **features : bool
        `attention_bias`, `output_bias`, `mlp_bias`, `qk_norm`.

    Raises
    ------
    InputError
        A value missing or absurd.
    UnsupportedError
        Something the decoder does not implement.
    """
    for key, harmless in _HARMLESS.items():
        if experts is None or key not in _EXPERTS:
            refuse(config, key, harmless)
    refuse(config, "hidden_act", _SILU)
    fields = Fields(config)
    hidden, n_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    # An explicit null means as many as heads, whatever the family's default.
    absent = n_heads if "num_key_value_heads" in config else defaults["n_kv_heads"] or n_heads
    n_kv_heads = fields.size("num_key_value_heads", absent)
    if n_heads % n_kv_heads:
        raise InputError(
            "num_key_value_heads does not divide num_attention_heads", file="config.json", found=n_kv_heads
        )
    max_position = fields.size("max_position_embeddings", defaults["max_position_embeddings"])
    positions = rope(config, max_position)
    head_dim = _head_dim(fields, defaults["head_dim"], hidden, n_heads)
    if positions.kind == "dynamic" and head_dim == 2:
        raise InputError("dynamic rotary positions need a head_dim above 2", file="config.json", found=head_dim)
    return DecoderConfig(
        model_type=str(config["model_type"]),
        hidden_size=hidden,
        n_layers=len(windows),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=positions,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=features["attention_bias"],
        output_bias=features["output_bias"],
        mlp_bias=features["mlp_bias"],
        qk_norm=features["qk_norm"],
        sliding_window=windows,
        max_position_embeddings=max_position,
        experts=experts,
    )


def _head_dim(fields: Fields, default: int | None, hidden: int, n_heads: int) -> int:
    if default is None and not fields.has("head_dim") and hidden % n_heads:
        raise InputError(
            "num_attention_heads does not divide hidden_size, and there is no head_dim",
            file="config.json",
            found=f"{n_heads} and {hidden}",
        )
    head_dim = fields.size("head_dim", default or max(hidden // n_heads, 1), most=65536)
    if head_dim % 2:
        raise InputError("rotary positions need an even head_dim", file="config.json", found=head_dim)
    return head_dim


def n_layers(config: Mapping[str, Any]) -> int:
    """Read the number of decoder blocks."""
    return Fields(config).size("num_hidden_layers", most=10000)


def windows_by_layer(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sliding windows of the Qwen families.

    `layer_types` decides where it is given; otherwise the layers from `max_window_layers` (28) on slide. No layer
    does unless `use_sliding_window` is set.
    """
    fields, layers = Fields(config), n_layers(config)
    window = None
    # A missing window is 4096; a null means none.
    if fields.flag("use_sliding_window", False) and config.get("sliding_window", 4096) is not None:
        window = fields.size("sliding_window", 4096)
    given = config.get("layer_types")
    if given is None:
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise InputError("max_window_layers makes no sense", file="config.json", found=repr(first)[:60])
        return tuple(window if i >= first else None for i in range(layers))
    if not isinstance(given, list) or len(given) != layers:
        raise InputError("layer_types must name every layer", file="config.json", expected=f"{layers} names")
    return tuple(_window(kind, window) for kind in given)


def _window(kind: Any, window: int | None) -> int | None:
    if kind in _ALL_LAYERS:
        return None
    if kind != "sliding_attention":
        raise UnsupportedError(f"layer type {str(kind)[:60]!r}", file="config.json")
    if window is None:
        raise InputError(
            "layer_types names sliding_attention, but there is no window", file="config.json", expected="sliding_window"
        )
    return window
