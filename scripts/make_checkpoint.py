"""Write a random checkpoint of a real shape: any Hugging Face config, or a preset. Streamed, and the same every time.

python scripts/make_checkpoint.py llama-7b out --layers 4
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import ml_dtypes
import numpy as np

from llmq.architectures import DecoderConfig, decoder_config
from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import split_companions
from llmq.checkpoint.layout import OutputTensor, index_of, lay_out
from llmq.cli.progress import show_progress
from llmq.cli.sizes import SIZE, format_size
from llmq.errors import InputError, LlmqError, UsageError
from llmq.system.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.layout import ShardLayout
    from llmq.system.progress import Progress

_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BLOCK_ELEMENTS: Final = 1 << 19
_GROUP: Final = 64
_INDEX: Final = "model.safetensors.index.json"


def _llama(hidden: int, intermediate: int, layers: int, heads: tuple[int, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


PRESETS: Final = {
    "tiny": _llama(128, 352, 2, (4, 2)) | {"vocab_size": 512},
    "llama-1b": _llama(2048, 5632, 22, (32, 4)),
    "llama-7b": _llama(4096, 11008, 32, (32, 32)),
    "llama-70b": _llama(8192, 28672, 80, (64, 8)),
    "llama3-70b": _llama(8192, 28672, 80, (64, 8)) | {"vocab_size": 128256, "max_position_embeddings": 8192},
}
"""Configurations by name."""


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor, made from a seed of their own.

    Parameters
    ----------
    tensor : OutputTensor
    rows : int
    seed : tuple of int
    """

    tensor: OutputTensor
    rows: int
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """The flags."""

    layers: int | None
    seed: int
    dtype: str
    max_shard_size: int


def tensors_of(config: DecoderConfig, dtype: str) -> list[OutputTensor]:
    """Names and shapes of all tensors of a model, in the order a model runs."""
    c, code = config, _DTYPES[dtype]
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    linears = {
        "self_attn.q_proj": (queries, c.hidden_size, c.attention_bias),
        "self_attn.k_proj": (keys, c.hidden_size, c.attention_bias),
        "self_attn.v_proj": (keys, c.hidden_size, c.attention_bias),
        "self_attn.o_proj": (c.hidden_size, queries, c.output_bias),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size, c.mlp_bias),
    }
    norms = {"input_layernorm": c.hidden_size, "post_attention_layernorm": c.hidden_size}
    if c.qk_norm:
        norms |= {"self_attn.q_norm": c.head_dim, "self_attn.k_norm": c.head_dim}
    for layer in range(c.n_layers):
        for name, (rows, columns, bias) in linears.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"model.layers.{layer}.{name}.bias"] = (rows,)
        shapes |= {f"model.layers.{layer}.{name}.weight": (size,) for name, size in norms.items()}
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return [OutputTensor(name, code, shape) for name, shape in shapes.items()]


def blocks_of(number: int, tensor: OutputTensor, seed: int) -> Iterator[Block]:
    """Cut a tensor into blocks of about half a million elements."""
    rows, columns = (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) == 2 else (1, tensor.shape[0])
    step = max(1, _BLOCK_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield Block(tensor, min(step, rows - start), (seed, number, start))


def fill(block: Block) -> bytes:
    """Make the bytes of a block.

    Norms are near 1 and biases small. A linear has a standard deviation of about ``1 / sqrt(in_features)``, but rows
    and groups of a row differ in scale and a few columns stand out: tails as heavy as those of trained weights.
    """
    tensor = block.tensor
    draw = np.random.Generator(np.random.SFC64(np.random.SeedSequence(block.seed)))
    if len(tensor.shape) == 1:
        x = draw.standard_normal(tensor.shape, np.float32)
        is_bias = tensor.name.endswith(".bias")
        return encode(np.float32(0.02) * x if is_bias else 1 + np.float32(0.1) * x, tensor.dtype)
    columns = tensor.shape[1]
    group = _GROUP if columns % _GROUP == 0 else columns
    x = draw.standard_normal((block.rows, columns // group, group), np.float32)
    spread = 0.3 * draw.standard_normal((block.rows, 1), np.float32)
    spread = spread + 0.2 * draw.standard_normal(x.shape[:2], np.float32)
    x *= (np.exp(spread) * np.float32(columns**-0.5))[:, :, None]
    x = x.reshape(block.rows, columns)
    # The same columns stand out in every block of a tensor.
    shared = np.random.default_rng(block.seed[:2])
    loud = shared.choice(columns, max(1, columns // 512), replace=False)
    x[:, loud] *= shared.uniform(3.0, 8.0, loud.size).astype(np.float32)
    return encode(x, tensor.dtype)


def encode(x: np.ndarray, dtype: str) -> bytes:
    """Bytes of float32 as a dtype of safetensors."""
    if dtype == "BF16":
        return x.astype(ml_dtypes.bfloat16).tobytes()
    return x.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def write_shards(out: Path, shards: tuple[ShardLayout, ...], seed: int, progress: Progress) -> None:
    """Write all shards: threads make blocks, a few ahead of the one that writes them."""
    workers = os.cpu_count() or 1
    number = 0
    with ThreadPoolExecutor(workers) as pool:
        for shard in shards:
            part = out / f"{shard.file}.part"
            with part.open("wb") as file:
                file.write(shard.header)
                waiting: deque[Any] = deque()
                for tensor in shard.tensors:
                    for block in blocks_of(number, tensor, seed):
                        waiting.append(pool.submit(fill, block))
                        if len(waiting) > 2 * workers:
                            progress.advance(file.write(waiting.popleft().result()))
                    number += 1
                while waiting:
                    progress.advance(file.write(waiting.popleft().result()))
            part.replace(out / shard.file)


def read_config(name: str) -> dict[str, Any]:
    """Find a configuration: a preset, a file, or that of a folder."""
    if name in PRESETS:
        return dict(PRESETS[name])
    path = Path(name)
    if not path.exists():
        raise UsageError("neither a file nor a preset", file=name, expected=f"a config.json, or {'/'.join(PRESETS)}")
    path = path / "config.json" if path.is_dir() else path
    config = json_strict.loads(path.read_bytes(), path)
    if not isinstance(config, dict):
        raise InputError("not a JSON object", file=path)
    return config


def companions(folder: Path) -> dict[str, Path]:
    """Tokenizer files and the like in a folder, by name; cards and licences speak of other weights."""
    if not folder.is_dir():
        return {}
    names, _ = split_companions(path.name for path in folder.iterdir() if path.is_file())
    return {name: folder / name for name in names if name.endswith((".json", ".model", ".txt", ".jinja", ".tiktoken"))}


def adapt(config: dict[str, Any], layers: int | None, dtype: str) -> dict[str, Any]:
    """Give a configuration another number of layers and another dtype."""
    adapted = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    adapted["dtype"] = dtype
    if layers is not None:
        adapted["num_hidden_layers"] = layers
        if isinstance(adapted.get("layer_types"), list):
            adapted["layer_types"] = adapted["layer_types"][:layers]
    return adapted


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("config", metavar="CONFIG")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--layers", type=click.IntRange(min=1), metavar="N", help="Decoder blocks.  [default: as the config says]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0)
@click.option("--dtype", type=click.Choice(sorted(_DTYPES)), default="bfloat16")
@click.option("--max-shard-size", type=SIZE, default="5GB", metavar="SIZE")
def main(config: str, out: Path, layers: int | None, seed: int, dtype: str, max_shard_size: int) -> None:
    """Write a random checkpoint into OUT, a new or empty folder.

    CONFIG is a config.json, a folder that holds one (its tokenizer is copied), or one of the presets tiny, llama-1b,
    llama-7b, llama-70b and llama3-70b. The same arguments give the same bytes.
    """
    try:
        make(read_config(config), companions(Path(config)), out, Options(layers, seed, dtype, max_shard_size))
    except LlmqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def make(config: dict[str, Any], beside: dict[str, Path], out: Path, options: Options) -> None:
    """Write a checkpoint; see `main`."""
    if out.exists() and any(out.iterdir()):
        raise UsageError("the folder is not empty", file=out)
    adapted = adapt(config, options.layers, options.dtype)
    shards = lay_out(tensors_of(decoder_config(adapted), options.dtype), options.max_shard_size)
    total = sum(shard.data_bytes for shard in shards)
    out.mkdir(parents=True, exist_ok=True)
    with show_progress() as progress:
        progress.start("writing", total)
        write_shards(out, shards, options.seed, progress)
        progress.finish()
    if len(shards) > 1:
        atomic_write(out / _INDEX, json.dumps(index_of(shards), indent=2).encode())
    for name, path in beside.items():
        atomic_write(out / name, path.read_bytes())
    atomic_write(out / "config.json", json.dumps(adapted, indent=2).encode())
    click.echo(f"{out}: {format_size(total)} in {len(shards)} file{'s' if len(shards) > 1 else ''}")


if __name__ == "__main__":
    main()
