"""Pico checkpoints, written by the safetensors library."""

import json
import struct
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy and safetensors bfloat16)
import numpy as np
import pytest
from safetensors.numpy import save_file


def raw_file(header, data=b"", *, length=None) -> bytes:
    """A file with any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def pico_tensors(seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((96, 64)).astype("bfloat16")}
    for layer in range(2):
        name = f"model.layers.{layer}"
        tensors[f"{name}.self_attn.q_proj.weight"] = rng.standard_normal((64, 64)).astype("bfloat16")
        tensors[f"{name}.mlp.down_proj.weight"] = rng.standard_normal((64, 96)).astype(np.float16)
        tensors[f"{name}.input_layernorm.weight"] = np.ones(64, np.float32)
    tensors["model.norm.weight"] = np.ones(64, np.float32)
    tensors["empty"] = np.zeros((0, 4), np.int32)
    return tensors


def write_pico(folder: Path, shards: int = 1, tensors=None) -> dict[str, np.ndarray]:
    tensors = pico_tensors() if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


@pytest.fixture
def pico(tmp_path):
    """A folder with one shard, and its tensors."""
    return tmp_path / "pico", write_pico(tmp_path / "pico")


@pytest.fixture
def sharded(tmp_path):
    """A folder with three shards and an index, and its tensors."""
    return tmp_path / "sharded", write_pico(tmp_path / "sharded", 3)


@pytest.fixture
def make_pico():
    """`write_pico(folder, shards=1, tensors=None)`."""
    return write_pico


@pytest.fixture
def make_raw():
    """`raw_file(header, data=b"", length=None)`."""
    return raw_file
