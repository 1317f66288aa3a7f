"""From the tensors of a checkpoint to decoder blocks and decoders."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from llmq.runtime.decoder import Decoder
from llmq.runtime.experts import SparseMlp
from llmq.runtime.held import Presence
from llmq.runtime.stack import Attention, Block, Mlp

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.architectures import DecoderConfig
    from llmq.architectures.experts import Experts
    from llmq.runtime.weights import Weights

__all__ = ["assemble_block", "assemble_decoder"]

_LINEARS: Final = ("gate_proj", "up_proj", "down_proj")


def assemble_decoder(config: DecoderConfig, weights: Weights, presence: Presence | None = None) -> Decoder:
    """Take all tensors of a model.

    Parameters
    ----------
    config : DecoderConfig
    weights : Weights
    presence : Presence, optional
        How weights that are not always there come there; all are by default.
    """
    table, head = "model.embed_tokens", "lm_head"
    shape = (config.vocab_size, config.hidden_size)
    tied = config.tie_word_embeddings
    # As in transformers, a checkpoint with both keeps both, and one of two tied tensors may be missing.
    embedding = weights.linear(head if tied and not weights.has(table) and weights.has(head) else table, shape)
    return Decoder(
        config=config,
        embedding=embedding,
        blocks=tuple(assemble_block(config, weights, layer, presence) for layer in range(config.n_layers)),
        norm=weights.vector("model.norm.weight", config.hidden_size),
        head=embedding if tied and not (weights.has(head) and weights.has(table)) else weights.linear(head, shape),
    )


def assemble_block(config: DecoderConfig, weights: Weights, layer: int, presence: Presence | None = None) -> Block:
    """Take the tensors of one decoder block; see `assemble_decoder`."""
    presence = presence or Presence()
    name, hidden = f"model.layers.{layer}", config.hidden_size
    experts = config.experts
    return Block(
        attention_norm=weights.vector(f"{name}.input_layernorm.weight", hidden),
        attention=_attention(config, weights, layer),
        mlp_norm=weights.vector(f"{name}.post_attention_layernorm.weight", hidden),
        mlp=_mlp(config, weights, f"{name}.mlp", config.intermediate_size)
        if experts is None or not experts.layers[layer]
        else _experts(config, experts, weights, name, presence.experts.get(layer)),
        ready=presence.turns.get(layer, nullcontext()),
    )


def _mlp(
    config: DecoderConfig, weights: Weights, name: str, inner: int, linears: tuple[str, str, str] = _LINEARS
) -> Mlp:
    hidden, bias = config.hidden_size, config.mlp_bias
    return Mlp(
        gate=weights.linear(f"{name}.{linears[0]}", (inner, hidden), bias=bias),
        up=weights.linear(f"{name}.{linears[1]}", (inner, hidden), bias=bias),
        down=weights.linear(f"{name}.{linears[2]}", (hidden, inner), bias=bias),
    )


def _experts(
    config: DecoderConfig,
    experts: Experts,
    weights: Weights,
    block: str,
    used_next: Callable[[int, int | None], None] | None,
) -> SparseMlp:
    name, hidden, shared = f"{block}.{experts.module}", config.hidden_size, experts.shared_size
    return SparseMlp(
        router=weights.linear(f"{name}.gate", (experts.count, hidden)),
        experts=tuple(
            _mlp(config, weights, f"{name}.experts.{number}", experts.intermediate_size, experts.linears)
            for number in range(experts.count)
        ),
        used=experts.used,
        normalized=experts.normalized,
        shared=None if shared is None else _mlp(config, weights, f"{name}.shared_expert", shared),
        shared_gate=None if shared is None else weights.linear(f"{name}.shared_expert_gate", (1, hidden)),
        used_next=used_next,
    )


def _attention(config: DecoderConfig, weights: Weights, layer: int) -> Attention:
    name = f"model.layers.{layer}.self_attn"
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.n_heads * head_dim, config.n_kv_heads * head_dim
    norms = [weights.vector(f"{name}.{n}.weight", head_dim) if config.qk_norm else None for n in ("q_norm", "k_norm")]
    return Attention(
        q=weights.linear(f"{name}.q_proj", (queries, hidden), bias=config.attention_bias),
        k=weights.linear(f"{name}.k_proj", (keys, hidden), bias=config.attention_bias),
        v=weights.linear(f"{name}.v_proj", (keys, hidden), bias=config.attention_bias),
        o=weights.linear(f"{name}.o_proj", (hidden, queries), bias=config.output_bias),
        q_norm=norms[0],
        k_norm=norms[1],
        window=config.sliding_window[layer],
    )
