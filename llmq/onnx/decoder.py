"""A whole decoder as a graph, with the inputs and outputs that Optimum gives its decoders.

    input_ids, position_ids        int64 (batch, sequence)
    attention_mask                 int64 (batch, past + sequence); 0 where a text is padded
    past_key_values.N.key|value    float32 (batch, n_kv_heads, past, head_dim)
    logits                         float32 (batch, sequence, vocab_size)
    present.N.key|value            float32 (batch, n_kv_heads, past + sequence, head_dim)

Attention is `GroupQueryAttention`, which holds no matrix of scores and knows sliding windows; it is told that every
text is as long as the longest, and padding is hidden by a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

import llmq
from llmq.onnx.decoder_rotary import add_rotation
from llmq.onnx.opsets import MICROSOFT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from llmq.architectures import DecoderConfig
    from llmq.onnx.decoder_graph import Graph
    from llmq.onnx.decoder_linear import Modules
    from llmq.runtime.decoder import Decoder
    from llmq.runtime.stack import Attention, Mlp

__all__ = ["OPSET", "Logits", "decoder_model"]

Logits = Literal["all", "last"]

OPSET: Final = 23
"""Of the standard operators: the first with RMS norms and rotary positions."""

_IR_VERSION: Final = 10
_HIDDEN: Final = -1e30
"""Added to scores of padding: far below any score, and finite, so that a text's padding itself makes no NaN."""

_PAST, _TOTAL = "past_sequence_length", "past_sequence_length + sequence_length"


@dataclass(frozen=True)
class _Shared:
    """Values that every block uses, by name."""

    cosine: str
    sine: str
    lengths: str
    total: str
    bias: str


def decoder_model(
    decoder: Decoder, modules: Modules, tied_module: str, *, logits: Logits, about: Mapping[str, str]
) -> ModelProto:
    """Make the graph of a decoder.

    Parameters
    ----------
    decoder : Decoder
        With its weights, which give sizes and kinds; their bytes are pointed to.
    modules : Modules
        Adds its linears to their graph.
    tied_module : str
        Module that holds the embedding table, and the head where they are one.
    logits : {"all", "last"}
        Of which tokens logits are computed.
    about : mapping of str to str
        Kept in the model's metadata.
    """
    graph, config = modules.graph, decoder.config
    shared = _add_shared(graph, config)
    x = modules.embedding(decoder.embedding, tied_module, "input_ids")
    for layer in range(config.n_layers):
        x = _add_block(modules, decoder, layer, x, shared)
    if logits == "last":
        ends = [graph.constant([n]) for n in (-1, 1 << 62, 1)]
        x = graph.node("Slice", [x, *ends], "last")
    x = _norm(modules, x, decoder.norm, "model.norm", config.rms_norm_eps)
    head = modules.linear(decoder.head, tied_module if decoder.head is decoder.embedding else "lm_head", x)
    graph.node("Identity", [head], "logits")
    made = helper.make_graph(graph.nodes, "decoder", _inputs(config), _outputs(config, logits), graph.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="llmq", producer_version=llmq.__version__
    )
    helper.set_model_props(model, dict(about))
    return model


def _inputs(config: DecoderConfig) -> list[ValueInfoProto]:
    tokens: list[Any] = ["batch_size", "sequence_length"]
    found = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", _TOTAL]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, tokens),
    ]
    return found + _cache(config, "past_key_values", _PAST)


def _outputs(config: DecoderConfig, logits: Logits) -> list[ValueInfoProto]:
    tokens: list[Any] = ["batch_size", "sequence_length" if logits == "all" else 1, config.vocab_size]
    return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, tokens), *_cache(config, "present", _TOTAL)]


def _cache(config: DecoderConfig, name: str, length: str) -> list[ValueInfoProto]:
    shape: list[Any] = ["batch_size", config.n_kv_heads, length, config.head_dim]
    return [
        helper.make_tensor_value_info(f"{name}.{layer}.{part}", TensorProto.FLOAT, shape)
        for layer in range(config.n_layers)
        for part in ("key", "value")
    ]


def _add_shared(graph: Graph, config: DecoderConfig) -> _Shared:
    cosine, sine = add_rotation(graph, config.rope, config.head_dim, "position_ids")
    batch = graph.node("Shape", ["input_ids"], "batch", start=0, end=1)
    sequence = graph.node("Shape", ["input_ids"], "sequence", start=1, end=2)
    total = graph.node("Shape", ["attention_mask"], "total", start=1, end=2)
    total_int32 = graph.node("Cast", [total], "total.int32", to=TensorProto.INT32)
    # The operator wants the number of tokens less one, for each text.
    length = graph.node("Sub", [total_int32, graph.constant([1], np.int32)], "length")
    lengths = graph.node("Expand", [length, batch], "lengths")
    scalar = graph.node("Squeeze", [total_int32], "total.scalar")
    return _Shared(cosine, sine, lengths, scalar, _add_bias(graph, sequence))


def _add_bias(graph: Graph, sequence: str) -> str:
    """Hide padding: float32 (batch, 1, sequence, past + sequence), zero elsewhere."""
    mask = graph.node("Cast", ["attention_mask"], "mask.float32", to=TensorProto.FLOAT)
    padding = graph.node("Sub", [graph.constant(1.0, np.float32), mask], "padding")
    hidden = graph.node("Mul", [padding, graph.constant(_HIDDEN, np.float32)], "hidden")
    row = graph.node("Unsqueeze", [hidden, graph.constant([1, 2])], "hidden.row")
    one = graph.constant([1])
    shape = graph.node("Concat", [one, one, sequence, one], "hidden.shape", axis=0)
    return graph.node("Expand", [row, shape], "attention_bias")


def _add_block(modules: Modules, decoder: Decoder, layer: int, x: str, shared: _Shared) -> str:
    graph, block, eps = modules.graph, decoder.blocks[layer], decoder.config.rms_norm_eps
    name = f"model.layers.{layer}"
    normed = _norm(modules, x, block.attention_norm, f"{name}.input_layernorm", eps)
    attended = _attend(modules, decoder.config, block.attention, layer, (normed, shared))
    x = graph.node("Add", [x, attended], f"{name}.attended")
    normed = _norm(modules, x, block.mlp_norm, f"{name}.post_attention_layernorm", eps)
    mlp: Any = block.mlp
    return graph.node("Add", [x, _mlp(modules, mlp, f"{name}.mlp", normed)], f"{name}.output")


def _norm(modules: Modules, x: str, weight: np.ndarray, name: str, eps: float) -> str:
    inputs = [x, modules.vector(weight, f"{name}.weight")]
    return modules.graph.node("RMSNormalization", inputs, f"{name}.output", axis=-1, epsilon=eps)


def _attend(modules: Modules, config: DecoderConfig, weights: Attention, layer: int, given: tuple[str, _Shared]) -> str:
    graph, (x, shared), name = modules.graph, given, f"model.layers.{layer}.self_attn"
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    turned = []
    for part, linear, norm in (("q", weights.q, weights.q_norm), ("k", weights.k, weights.k_norm)):
        found = modules.linear(linear, f"{name}.{part}_proj", x)
        if norm is not None:
            found = _norm_heads(modules, found, norm, f"{name}.{part}_norm", config.rms_norm_eps)
        inputs = [found, shared.cosine, shared.sine]
        turned.append(graph.node("RotaryEmbedding", inputs, f"{name}.{part}_turned", num_heads=heads[part]))
    value = modules.linear(weights.v, f"{name}.v_proj", x)
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    rest = [shared.lengths, shared.total, "", "", "", shared.bias]
    graph.several(
        "GroupQueryAttention",
        [*turned, value, *past, *rest],
        [f"{name}.mixed", f"present.{layer}.key", f"present.{layer}.value"],
        domain=MICROSOFT,
        num_heads=config.n_heads,
        kv_num_heads=config.n_kv_heads,
        local_window_size=weights.window or -1,
    )
    return modules.linear(weights.o, f"{name}.o_proj", f"{name}.mixed")


def _norm_heads(modules: Modules, x: str, weight: np.ndarray, name: str, eps: float) -> str:
    """Norm of each head of queries or keys (batch, sequence, heads * head_dim)."""
    graph = modules.graph
    heads = graph.node("Reshape", [x, graph.constant([0, 0, -1, weight.size])], f"{name}.heads")
    normed = _norm(modules, heads, weight, name, eps)
    return graph.node("Reshape", [normed, graph.constant([0, 0, -1])], f"{name}.joined")


def _mlp(modules: Modules, weights: Mlp, name: str, x: str) -> str:
    graph = modules.graph
    gate = modules.linear(weights.gate, f"{name}.gate_proj", x)
    up = modules.linear(weights.up, f"{name}.up_proj", x)
    opened = graph.node("Sigmoid", [gate], f"{name}.sigmoid")
    silu = graph.node("Mul", [gate, opened], f"{name}.silu")
    gated = graph.node("Mul", [silu, up], f"{name}.gated")
    return modules.linear(weights.down, f"{name}.down_proj", gated)
