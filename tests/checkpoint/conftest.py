"""Pico checkpoints, written by the safetensors library, and an example of what the writer writes."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  (teaches NumPy and safetensors bfloat16)
import numpy as np
import pytest
from safetensors.numpy import save_file

from llmq.checkpoint.writer import CheckpointWriter, OutputTensor, lay_out


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


RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight_packed": RNG.integers(0, 2**31, (40, 9), np.int32),
    "a.weight_scale": RNG.standard_normal((40, 3)).astype("bfloat16"),
    "a.weight_shape": np.array([40, 72]),
    "empty": np.zeros((0, 3), np.float32),
    "b.weight": RNG.standard_normal((17, 5)).astype(np.float16),
    "c.weight": RNG.standard_normal(33).astype(np.float32),
    "d": RNG.integers(0, 255, 1001, np.uint8),
}
CODES = {"int32": "I32", "bfloat16": "BF16", "int64": "I64", "float32": "F32", "float16": "F16", "uint8": "U8"}
PLANNED = [OutputTensor(name, CODES[str(array.dtype)], array.shape) for name, array in ARRAYS.items()]
SHARDS = lay_out(PLANNED, 1500)
IDENTITY = {"settings": {"bits": 4, "group": [1, 2]}, "source": {"x": 1}}
PIECE = 400


def pieces():
    """`(name, bytes)` in an order where tensors grow by turns."""
    rest = {name: memoryview(array.tobytes()) for name, array in ARRAYS.items()}
    while rest:
        for name in list(rest)[:2]:
            if len(rest[name]):
                yield name, rest[name][:PIECE]
            rest[name] = rest[name][PIECE:]
            if not len(rest[name]):
                del rest[name]


def run(folder: Path, copies: dict[str, Path], **flags) -> frozenset[str]:
    with CheckpointWriter(folder, SHARDS, identity=IDENTITY, **flags) as writer:
        for name, data in pieces():
            if name not in writer.completed:
                writer.write(name, data)
        writer.commit({"model_type": "llama"}, copies)
    return writer.completed


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def example():
    """An example output: its tensors, what it is planned as, and functions that write and read it."""
    return SimpleNamespace(arrays=ARRAYS, shards=SHARDS, identity=IDENTITY, pieces=pieces, run=run, snapshot=snapshot)


@pytest.fixture
def copies(tmp_path):
    """A file to be copied into an output, by its name there."""
    (tmp_path / "tokenizer").write_text("{}")
    return {"tokenizer.json": tmp_path / "tokenizer"}


@pytest.fixture
def expected(tmp_path, copies):
    """The files of the example output, by name."""
    run(tmp_path / "expected", copies)
    return snapshot(tmp_path / "expected")
