"""Fixtures that every test may use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

# The first call of a kernel compiles it, which no deadline foresees.
settings.register_profile("llmq", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("llmq")

PICO_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

PICO_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


class WritePico(Protocol):
    """Signature of the `write_pico` fixture."""

    def __call__(
        self,
        folder: Path,
        *,
        dtype: str = "bfloat16",
        shards: int = 1,
        seed: int = 0,
        edit: dict[str, np.ndarray | None] | None = None,
        **config: Any,
    ) -> Path: ...


def pico_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Random float32 tensors of a tiny Llama."""
    rng = np.random.default_rng(seed)
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * heads, config["num_key_value_heads"] * heads
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return {
        f"{name}.weight": (
            rng.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5
            if len(shape) == 2
            else (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def write_pico() -> WritePico:
    """Write a tiny random Llama checkpoint: two layers, width 64, in `shards` files, `edit` replacing tensors."""

    def write(
        folder: Path,
        *,
        dtype: str = "bfloat16",
        shards: int = 1,
        seed: int = 0,
        edit: dict[str, np.ndarray | None] | None = None,
        **config: Any,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        full = PICO_CONFIG | {"dtype": dtype} | config
        tensors = {name: t.astype(PICO_DTYPES[dtype]) for name, t in pico_tensors(full, seed).items()}
        tensors = {n: t for n, t in (tensors | (edit or {})).items() if t is not None}
        (folder / "config.json").write_text(json.dumps(full))
        names = sorted(tensors)
        if shards == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        weight_map = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
        for file in files:
            part = {n: tensors[n] for n in names if weight_map[n] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


@pytest.fixture(scope="session")
def sample_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sample checkpoint in a folder; not to be written to."""
    from llmq.sample import write_sample

    return write_sample(tmp_path_factory.mktemp("models") / "sample")


@pytest.fixture(scope="session")
def add_letters() -> Callable[[Path], Path]:
    """Puts a tokenizer of letters into a checkpoint, and returns its folder."""

    def add(folder: Path) -> Path:
        letters = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz ")}
        tokenizer = Tokenizer(models.WordLevel(letters, unk_token=" "))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return folder

    return add
