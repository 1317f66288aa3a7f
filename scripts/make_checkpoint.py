"""Write a checkpoint of any size with random weights of realistic statistics, to measure memory and speed on.

    python scripts/make_checkpoint.py llama-7b big --layers 8
    python scripts/make_checkpoint.py path/to/config.json out

The bytes depend on the configuration, the dtype and the seed alone. Weights are Gaussian with a scale that varies from
row to row and from one run of 32 columns to the next, which gives heavy tails, and with a few outlier columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from llmq.architectures import decoder_config
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.layout import OutputTensor, ShardLayout, index_of, lay_out
from llmq.cli.progress import show_progress
from llmq.cli.sizes import SIZE, format_size
from llmq.errors import LlmqError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""What each preset adds to `COMMON`."""

COMMON: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BLOCK_ROWS: Final = 128
RUN: Final = 32
"""Columns that share a scale."""

_OUTLIERS: Final = 0.002
_LARGER: Final = 8.0


def read_config(config: str, layers: int | None) -> dict[str, Any]:
    """The configuration of a preset, of a `config.json`, or of a folder with one."""
    if config in PRESETS:
        found = COMMON | PRESETS[config]
    else:
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise UsageError("no such preset or file", found=config, expected=f"{', '.join(PRESETS)} or a config.json")
        found = json.loads(path.read_text(encoding="utf-8"))
    found.pop("quantization_config", None)
    if layers is not None:
        found = {key: value for key, value in found.items() if key != "layer_types"} | {"num_hidden_layers": layers}
    return found


def tensors_of(config: dict[str, Any], dtype: str) -> list[OutputTensor]:
    """The tensors of a model, in the order it runs."""
    model = decoder_config(config)
    hidden, inner = model.hidden_size, model.intermediate_size
    queries, keys = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    linears = {
        "self_attn.q_proj": ((queries, hidden), model.attention_bias),
        "self_attn.k_proj": ((keys, hidden), model.attention_bias),
        "self_attn.v_proj": ((keys, hidden), model.attention_bias),
        "self_attn.o_proj": ((hidden, queries), model.output_bias),
        "mlp.gate_proj": ((inner, hidden), model.mlp_bias),
        "mlp.up_proj": ((inner, hidden), model.mlp_bias),
        "mlp.down_proj": ((hidden, inner), model.mlp_bias),
    }
    norms = ("input_layernorm", "post_attention_layernorm")
    block: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in norms}
    if model.qk_norm:
        block |= {f"self_attn.{which}_norm.weight": (model.head_dim,) for which in "qk"}
    for name, (shape, biased) in linears.items():
        block |= {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if biased else {})
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    for layer in range(model.n_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return [OutputTensor(name, DTYPES[dtype], shape) for name, shape in shapes.items()]


def block_of(tensor: OutputTensor, start: int, stop: int, seed: int) -> np.ndarray:
    """Rows `start` to `stop` of a tensor, in its dtype."""
    words = np.frombuffer(hashlib.sha256(f"{seed} {tensor.name} {start}".encode()).digest(), np.uint32)
    rng = np.random.Generator(np.random.SFC64([int(word) for word in words]))
    if len(tensor.shape) == 1:
        spread, middle = (0.1, 1.0) if tensor.name.endswith("norm.weight") else (0.02, 0.0)
        values = middle + spread * rng.standard_normal(stop - start, np.float32)
    else:
        values = _matrix(rng, stop - start, tensor.shape[1], _columns(tensor, seed))
    return values.astype(NUMPY_DTYPES[tensor.dtype])


def _matrix(rng: np.random.Generator, rows: int, columns: int, scale: np.ndarray) -> np.ndarray:
    runs = -(-columns // RUN)
    spread = np.exp(0.25 * rng.standard_normal((rows, 1, 1), np.float32))
    spread = spread * np.exp(0.35 * rng.standard_normal((rows, runs, 1), np.float32))
    values = rng.standard_normal((rows, runs * RUN), np.float32)
    values.reshape(rows, runs, RUN)[...] *= spread
    return np.asarray(values[:, :columns] * scale, np.float32)


def _columns(tensor: OutputTensor, seed: int) -> np.ndarray:
    """Scale of each column: one over the root of the fan-in, a few columns larger."""
    columns = tensor.shape[1]
    words = np.frombuffer(hashlib.sha256(f"{seed} {tensor.name} columns".encode()).digest(), np.uint32)
    rng = np.random.Generator(np.random.SFC64([int(word) for word in words]))
    larger = rng.random(columns) < _OUTLIERS
    return np.where(larger, _LARGER, 1.0).astype(np.float32) * np.float32(0.7 * columns**-0.5)


def write_checkpoint(folder: Path, config: dict[str, Any], *, dtype: str, seed: int, max_shard_size: int) -> int:
    """Write configuration, shards and index into an empty folder; returns the bytes of all tensors.

    Raises
    ------
    UsageError
        The folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError("the folder is not empty", file=folder)
    shards = lay_out(tensors_of(config, dtype), max_shard_size)
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(shard.data_bytes for shard in shards)
    with show_progress() as progress:
        progress.start(f"writing {folder}", total)
        for shard in shards:
            with (folder / shard.file).open("wb") as file:
                file.write(shard.header)
                for block in _blocks(shard, seed):
                    file.write(block.reshape(-1).view(np.uint8).data)
                    progress.advance(block.nbytes)
        progress.finish()
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_of(shards), indent=2))
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))
    return total


def _blocks(shard: ShardLayout, seed: int) -> Iterator[np.ndarray]:
    """The data of a shard in order, computed a few blocks ahead on all cores."""
    waiting: deque[Future[np.ndarray]] = deque()
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for tensor in shard.tensors:
            step = BLOCK_ROWS if len(tensor.shape) == 2 else tensor.shape[0]
            for start in range(0, tensor.shape[0], step):
                waiting.append(pool.submit(block_of, tensor, start, min(start + step, tensor.shape[0]), seed))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(1), help="Number of blocks, instead of the configuration's.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-shard-size", type=SIZE, default="2GB", show_default=True)
def main(config: str, output: Path, layers: int | None, dtype: str, seed: int, max_shard_size: int) -> None:
    """Write a checkpoint with random weights into the empty folder OUT.

    CONFIG is llama-7b, llama-70b, a config.json or a folder with one (llama, mistral, qwen2 or qwen3).
    """
    try:
        total = write_checkpoint(
            output, read_config(config, layers), dtype=dtype, seed=seed, max_shard_size=max_shard_size
        )
    except LlmqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{output}: {format_size(total)}")


if __name__ == "__main__":
    main()
