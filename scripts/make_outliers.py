"""Rescale some channels of a Llama checkpoint so that it computes the same and is harder to quantize.

python scripts/make_outliers.py SOURCE OUT --share 0.005 --factor 32

Large models have channels that are much larger than the others. This gives them to a small one: a channel between two
linears, or between a norm's gain and linears, is made larger on one side and smaller on the other by a power of two,
which is exact in every float format.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from safetensors.numpy import save_file

from llmq.architectures import decoder_config
from llmq.checkpoint.companions import is_weight_file
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_local

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.architectures import DecoderConfig

__all__ = ["Site", "make", "rescale", "sites"]


@dataclass(frozen=True)
class Site:
    """Channels that one side of a checkpoint writes and another reads.

    Parameters
    ----------
    writer : str
        A tensor whose rows, or a norm's gain whose elements, are the channels.
    readers : tuple of str
        Linears whose columns are.
    channels : int
        Of the writer.
    heads : tuple of int
        Heads of the writer and of the readers, where each of the writer's is read by several; else (1, 1).
    """

    writer: str
    readers: tuple[str, ...]
    channels: int
    heads: tuple[int, int] = (1, 1)

    def columns(self, channels: np.ndarray) -> np.ndarray:
        """Columns of the readers that read some channels, int64.

        >>> Site("v", ("o",), 4, heads=(2, 4)).columns(np.array([0, 3])).tolist()
        [0, 2, 5, 7]
        """
        ours, theirs = self.heads
        times, size = theirs // ours, self.channels // ours
        head, place = channels // size, channels % size
        found = (head * times)[:, None] + np.arange(times)
        read: np.ndarray = (found * size + place[:, None]).reshape(-1)
        return read


def sites(config: DecoderConfig) -> Iterator[Site]:
    """List where a decoder's channels can be rescaled without changing what it computes.

    Not before a nonlinearity, so not between `gate` and `down`, and not at `q` and `k`, which rotary positions mix.
    """
    values = config.n_kv_heads * config.head_dim
    for layer in range(config.n_layers):
        block = f"model.layers.{layer}"
        inputs = tuple(f"{block}.self_attn.{name}_proj.weight" for name in "qkv")
        yield Site(f"{block}.input_layernorm.weight", inputs, config.hidden_size)
        pair = (f"{block}.mlp.gate_proj.weight", f"{block}.mlp.up_proj.weight")
        yield Site(f"{block}.post_attention_layernorm.weight", pair, config.hidden_size)
        heads = (config.n_kv_heads, config.n_heads)
        yield Site(f"{block}.self_attn.v_proj.weight", (f"{block}.self_attn.o_proj.weight",), values, heads)
        down = f"{block}.mlp.down_proj.weight"
        yield Site(f"{block}.mlp.up_proj.weight", (down,), config.intermediate_size)


def rescale(tensors: dict[str, np.ndarray], site: Site, channels: np.ndarray, factor: float) -> None:
    """Multiply channels where they are written, a bias too, and divide them where they are read; in place."""
    writer = tensors[site.writer]
    writer[channels] = writer[channels] * writer.dtype.type(factor)
    bias = tensors.get(site.writer.removesuffix("weight") + "bias")
    if bias is not None:
        bias[channels] = bias[channels] * bias.dtype.type(factor)
    for name in site.readers:
        reader, columns = tensors[name], site.columns(channels)
        reader[:, columns] = reader[:, columns] / reader.dtype.type(factor)


def make(source: Path, output: Path, share: float, factor: int, seed: int) -> int:
    """Write a checkpoint with outliers; channels rescaled.

    Parameters
    ----------
    source, output : Path
        A float checkpoint, and a folder to write.
    share : float
        Of the channels of each site; at least one of them.
    factor : int
        A power of two.
    seed : int
        Decides which channels.
    """
    draw, count = np.random.default_rng(seed), 0
    with open_local(source) as opened:
        mapped = MappedCheckpoint(opened)
        tensors = {name: mapped.tensor(name).copy() for name in opened.tensors}
        config = decoder_config(opened.config)
    for site in sites(config):
        chosen = draw.choice(site.channels, max(1, round(share * site.channels)), replace=False)
        rescale(tensors, site, chosen, factor)
        count += chosen.size
    _write(source, output, tensors)
    return count


def _write(source: Path, output: Path, tensors: dict[str, np.ndarray]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "model.safetensors")
    for path in source.iterdir():
        if path.is_file() and not is_weight_file(path.name) and not path.name.endswith(".index.json"):
            shutil.copy(path, output / path.name)


def _power_of_two(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two: the result would not be exact")
    return value


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--share", type=click.FloatRange(0, 1), default=0.005, help="Of the channels of each site.")
@click.option("--factor", type=click.IntRange(min=2), default=32, callback=_power_of_two, help="A power of two.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
def main(source: Path, out: Path, share: float, factor: int, seed: int) -> None:
    """Write into OUT, a new or empty folder, what SOURCE computes, with outliers in its weights."""
    if out.exists() and any(out.iterdir()):
        raise click.ClickException(f"{out}: the folder is not empty")
    click.echo(f"{out}: {make(source, out, share, factor, seed)} channels times {factor}")


if __name__ == "__main__":
    main()
