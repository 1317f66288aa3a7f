"""The sound checkpoints that are made malformed: a tiny Llama with a tokenizer and a chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import make_checkpoint
from llmq.architectures import decoder_config
from tortures.attacks.case import INDEX, MODEL, read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG", "KINDS", "write_sound"]

CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}

KINDS: Final = ("single", "sharded", "packed", "asymmetric", "output")
"""One file; three; codes as other programs write them, without and with zero points; an output of llmq."""

_TEMPLATE: Final = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)
_SHARDS: Final = 3


def write_sound(folder: Path) -> None:
    """Write one checkpoint of each of `KINDS` below `folder`."""
    for kind in KINDS[:2]:
        _write_beside(folder / kind)
    tensors = _tensors()
    save_file(tensors, folder / "single" / MODEL, metadata={"format": "pt"})
    _write_shards(folder / "sharded", tensors)
    _write_packed(folder)


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    planned = make_checkpoint.tensors_of(decoder_config(CONFIG), "bfloat16")
    return {
        tensor.name: (rng.standard_normal(tensor.shape) * tensor.shape[-1] ** -0.5).astype(ml_dtypes.bfloat16)
        for tensor in planned
    }


def _write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    names = sorted(tensors)
    files = [f"model-{number + 1:05d}-of-{_SHARDS:05d}.safetensors" for number in range(_SHARDS)]
    weight_map = {name: files[place * _SHARDS // len(names)] for place, name in enumerate(names)}
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_beside(folder: Path) -> None:
    """Write the configuration and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", {"eos_token_id": [1]})
    special = ["<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": _TEMPLATE})


def _write_packed(folder: Path) -> None:
    """Quantize, and take away what tells that llmq did."""
    import llmq

    llmq.quantize(folder / "single", folder / "output", method="rtn", lm_head="keep", group_size=32)
    for kind, symmetric in (("packed", True), ("asymmetric", False)):
        out = folder / kind
        llmq.quantize(folder / "single", out, method="rtn", lm_head="keep", group_size=32, symmetric=symmetric)
        for name in ("llmq.json", "recipe.json"):
            (out / name).unlink()
        config = read_json(out / "config.json")
        del config["quantization_config"]["llmq"]
        (out / "config.json").write_text(json.dumps(config))
