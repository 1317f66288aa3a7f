"""From the tensors of a checkpoint to decoder blocks and decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.runtime.decoder import Decoder
from llmq.runtime.stack import Attention, Block, Mlp

if TYPE_CHECKING:
    from llmq.architectures import DecoderConfig
    from llmq.runtime.weights import Weights

__all__ = ["assemble_block", "assemble_decoder"]


def assemble_decoder(config: DecoderConfig, weights: Weights) -> Decoder:
    """Take all tensors of a model."""
    table, head = "model.embed_tokens", "lm_head"
    shape = (config.vocab_size, config.hidden_size)
    tied = config.tie_word_embeddings
    # As in transformers, a checkpoint with both keeps both, and one of two tied tensors may be missing.
    embedding = weights.linear(head if tied and not weights.has(table) and weights.has(head) else table, shape)
    return Decoder(
        config=config,
        embedding=embedding,
        blocks=tuple(assemble_block(config, weights, layer) for layer in range(config.n_layers)),
        norm=weights.vector("model.norm.weight", config.hidden_size),
        head=embedding if tied and not (weights.has(head) and weights.has(table)) else weights.linear(head, shape),
    )


def assemble_block(config: DecoderConfig, weights: Weights, layer: int) -> Block:
    """Take the tensors of one decoder block."""
    name = f"model.layers.{layer}"
    hidden, inner = config.hidden_size, config.intermediate_size
    return Block(
        attention_norm=weights.vector(f"{name}.input_layernorm.weight", hidden),
        attention=_attention(config, weights, layer),
        mlp_norm=weights.vector(f"{name}.post_attention_layernorm.weight", hidden),
        mlp=Mlp(
            gate=weights.linear(f"{name}.mlp.gate_proj", (inner, hidden), bias=config.mlp_bias),
            up=weights.linear(f"{name}.mlp.up_proj", (inner, hidden), bias=config.mlp_bias),
            down=weights.linear(f"{name}.mlp.down_proj", (hidden, inner), bias=config.mlp_bias),
        ),
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
