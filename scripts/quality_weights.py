"""Linears of a checkpoint, dense and in float32, and what another quantizer made of them, to evaluate."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from llmq.checkpoint.companions import is_weight_file
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_local
from llmq.system.memory import PeakMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Linear", "linears", "load", "quantize_by", "write_dense"]


@dataclass(frozen=True)
class Linear:
    """A linear as a quantizer left it.

    Parameters
    ----------
    weight : float32 (out_features, in_features)
        Dequantized.
    bits : float
        All that is stored of it: codes, scales and zero points.
    """

    weight: np.ndarray
    bits: float


def load(model: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a float checkpoint as float32, by name."""
    with open_local(model) as source:
        mapped = MappedCheckpoint(source)
        return {name: mapped.tensor(name).astype(np.float32) for name in source.tensors}


def linears(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pick what everyone quantizes: weights of the blocks' linears; not the head, not the embeddings."""
    return {name: x for name, x in tensors.items() if x.ndim == 2 and re.match(r"model\.layers\.\d+\.", name)}


def write_dense(model: Path, output: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a checkpoint in float32 with the configuration and the tokenizer of another."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and not is_weight_file(path.name) and not path.name.endswith(".index.json"):
            shutil.copy(path, output / path.name)
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (output / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, output / "model.safetensors")


def quantize_by(
    quantize: Callable[[dict[str, np.ndarray]], dict[str, Linear]], model: Path, output: Path
) -> dict[str, Any]:
    """Let a quantizer have the linears of a model, write what it made of them, dense, and say what it took.

    Parameters
    ----------
    quantize : callable
        From the weights, float32 by name, to what became of them.
    model, output : Path
        A float checkpoint, and a folder to write.

    Returns
    -------
    dict
        As `llmq quantize` and `llmq compare` call them: `bits_per_weight_quantized`, `bits_per_weight` with head and
        embeddings in 16 bits, `nmse`, `seconds` and `peak_anon_bytes` of quantizing.

    Raises
    ------
    ValueError
        A weight is missing, or has another shape.
    """
    tensors = load(model)
    weights = linears(tensors)
    with PeakMemory() as memory:
        began = time.perf_counter()
        made = quantize(weights)
        seconds = time.perf_counter() - began
    wrong = [name for name, x in weights.items() if name not in made or made[name].weight.shape != x.shape]
    if wrong:
        raise ValueError(f"{wrong[0]}: missing, or of another shape")
    write_dense(model, output, tensors | {name: made[name].weight for name in weights})
    squares = sum(float(np.square(x, dtype=np.float64).sum()) for x in weights.values())
    errors = sum(float(np.square(made[name].weight - x, dtype=np.float64).sum()) for name, x in weights.items())
    count, bits = sum(x.size for x in weights.values()), sum(made[name].bits for name in weights)
    parameters = sum(x.size for x in tensors.values())
    return {
        "bits_per_weight_quantized": bits / count,
        "bits_per_weight": (bits + 16 * (parameters - count)) / parameters,
        "nmse": errors / squares,
        "seconds": seconds,
        "peak_anon_bytes": memory.peak_anon,
    }
