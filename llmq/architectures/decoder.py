"""`DecoderConfig`: everything the one configurable decoder needs to know about a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmq.architectures.experts import Experts
    from llmq.architectures.rope import Rope

__all__ = ["DecoderConfig"]


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-like decoder: RMS norms, rotary positions, grouped-query attention, a SiLU-gated MLP.

    Parameters
    ----------
    model_type : str
        As in `config.json`.
    hidden_size, n_layers, n_heads, n_kv_heads, head_dim, intermediate_size, vocab_size : int
        Sizes; `n_kv_heads` divides `n_heads`, `head_dim` is even.
    rms_norm_eps : float
        Added to the mean square under every norm's root.
    rope : Rope
        Rotary positions.
    tie_word_embeddings : bool
        Whether the head is the embedding table.
    attention_bias, output_bias, mlp_bias : bool
        Biases of the query, key and value projections, of the output projection, of the three MLP projections.
    qk_norm : bool
        An RMS norm over each head of queries and keys, before the rotation.
    sliding_window : tuple of (int or None)
        For each layer, how many positions a token sees, itself included; None means all before it.
    max_position_embeddings : int
        Tokens of context the model was made for.
    hidden_act : str
        Activation of the MLP's gate.
    experts : Experts or None
        What some blocks have in place of their MLP.
    """

    model_type: str
    hidden_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]
    max_position_embeddings: int
    hidden_act: str = "silu"
    experts: Experts | None = None
