"""llama.cpp as a peer: a GGUF file of a checkpoint, its quantizer, and its decoder, by llama-cpp-python."""

from __future__ import annotations

import ctypes
import json
import re
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = [
    "TYPES",
    "LlamaCpp",
    "LlamaQuantizer",
    "gguf_name",
    "interleave",
    "llama_library",
    "streamed_bytes",
    "write_gguf",
]

TYPES: Final = {"Q4_0": 2, "Q4_K": 14, "IQ4_XS": 30, "Q8_0": 7, "Q2_K": 10}
"""File types of `llama.h` by name; the K types in their small variants, which read fewest bytes."""

_NAMES: Final = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, path: Path, matrices: str = "float16") -> None:
    """Write a Llama checkpoint as a GGUF file: matrices in float16 or float32, no vocabulary; tensor by tensor."""
    import gguf

    # Not above: llama.cpp must not find what llmq sets for its own threads.
    from llmq.checkpoint.mapped import MappedCheckpoint
    from llmq.checkpoint.source import open_local

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = path.with_suffix(".part")
    writer: Any = gguf.GGUFWriter(part, "llama")
    _add_sizes(writer, config)
    writer.add_file_type(1 if matrices == "float16" else 0)
    with open_local(model) as source:
        mapped = MappedCheckpoint(source)
        for name, info in source.tensors.items():
            dtype = np.dtype(matrices if len(info.shape) == 2 else np.float32)
            size = int(np.prod(info.shape)) * dtype.itemsize
            writer.add_tensor_info(gguf_name(name), info.shape, dtype, size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in source.tensors:
            tensor = mapped.tensor(name).astype(matrices if len(source.tensors[name].shape) == 2 else np.float32)
            split = next((heads[kind] for kind in heads if kind in name), None)
            writer.write_tensor_data(tensor if split is None else interleave(tensor, split))
    writer.close()
    part.replace(path)


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def gguf_name(name: str) -> str:
    """What a GGUF file calls a tensor of a Llama checkpoint."""
    stem = name.removesuffix(".weight")
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return f"blk.{block[1]}.{_NAMES[block[2]]}.weight" if block else f"{_NAMES[stem]}.weight"


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Bring the rows of each head from halves into pairs, as rotary positions of GGUF files have them."""
    rows, columns = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, -1, columns).swapaxes(1, 2).reshape(rows, columns))


def streamed_bytes(path: Path) -> int:
    """Bytes of weights that a token reads: all tensors but the embedding table."""
    import gguf

    reader: Any = gguf.GGUFReader(path)
    return sum(int(tensor.n_bytes) for tensor in reader.tensors if tensor.name != "token_embd.weight")


class LlamaQuantizer:
    """`llama_model_quantize` from a float16 GGUF file.

    Parameters
    ----------
    source, output : str
        Files.
    kind : str
        A key of `TYPES`.
    threads : int
    """

    def __init__(self, source: str, output: str, kind: str, threads: int) -> None:
        self._library = llama_library()
        self._source, self._output = source, Path(output)
        self._params = self._library.llama_model_quantize_default_params()
        self._params.ftype = TYPES[kind]
        self._params.nthread = threads

    def run(self) -> float:
        """Quantize once, into a new file; seconds."""
        self._output.unlink(missing_ok=True)
        began = time.perf_counter()
        failed = self._library.llama_model_quantize(
            self._source.encode(), str(self._output).encode(), ctypes.byref(self._params)
        )
        seconds = time.perf_counter() - began
        if failed:
            raise RuntimeError(f"llama_model_quantize failed with {failed}")
        return seconds


class LlamaCpp:
    """A GGUF file ready to run: memory-mapped, on `threads` threads.

    Parameters
    ----------
    path : str
    threads : int
    context : int
        Tokens of its cache.
    """

    def __init__(self, path: str, threads: int, context: int) -> None:
        self._library = library = llama_library()
        self._model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = library.llama_init_from_model(self._model, params)
        self._batch = library.llama_batch_init(512, 0, 1)
        self._length = 0
        self._bytes = streamed_bytes(Path(path))

    def streamed_bytes(self) -> int:
        """Bytes of weights that a token reads."""
        return self._bytes

    def prefill(self, tokens: int) -> float:
        """Read a prompt into an empty cache; seconds until the logits of its last token are there."""
        self._truncate(0)
        return self._timed(tokens)

    def decode(self, context: int, tokens: int) -> float:
        """Make `tokens` tokens, one after the other, the last of which fills the cache to `context`; seconds."""
        start = context - tokens
        while self._length < start:
            self._feed(min(512, start - self._length))
        self._truncate(start)
        began = time.perf_counter()
        for _ in range(tokens):
            self._feed(1)
            np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (self._vocab_size,)).argmax()
        return time.perf_counter() - began

    @property
    def _vocab_size(self) -> int:
        return int(self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model)))

    def _timed(self, tokens: int) -> float:
        began = time.perf_counter()
        for start in range(0, tokens, 512):
            self._feed(min(512, tokens - start))
        self._library.llama_get_logits(self._context)
        return time.perf_counter() - began

    def _truncate(self, length: int) -> None:
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_seq_rm(memory, 0, length, -1)
        self._length = length

    def _feed(self, count: int) -> None:
        batch = self._batch
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = (self._length + i) * 7919 % self._vocab_size
            batch.pos[i] = self._length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == count - 1
        failed = self._library.llama_decode(self._context, batch)
        if failed:
            raise RuntimeError(f"llama_decode failed with {failed}")
        self._length += count


def llama_library() -> Any:
    """Import llama_cpp and silence its log."""
    import llama_cpp

    global _quiet  # noqa: PLW0603
    _quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


_quiet: Any = None
"""The log callback, which C code holds on to."""
