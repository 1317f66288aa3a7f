"""What quantizing a float ONNX model costs: the bundled sample model as torch's exporter writes it, in every way."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmq.benchmarks.child import llmq
from llmq.cli.sizes import format_size
from llmq.sample import heldout_text, write_sample
from pages import table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["float_models"]

_WINDOWS, _CONTEXT = 64, 32
_FLAGS: Final = (
    "--bits 8",
    "--bits 4",
    "--bits 4 --embeddings 4",
    "--bits 2 --group-size 16",
    "--activations int8",
    "--activations int8 --bits 7",
    "--activations int8 --bits 4",
)


class _Logits(nn.Module):
    """A language model with tokens in and logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of int64 (batch, context)."""
        logits: torch.Tensor = self.model(tokens, use_cache=False).logits
        return logits


def float_models(folder: Path) -> str:
    """Errors, perplexity and bytes of the sample model, quantized in every way."""
    tokens = _export(folder / "float.onnx", folder / "float-sample")
    wanted, rows = _logits(folder / "float.onnx", tokens), []
    nbytes = sum(path.stat().st_size for path in folder.glob("float.onnx*"))
    rows.append(("float32", "", "", f"{_perplexity(wanted, tokens):.2f}", format_size(nbytes)))
    for flags in _FLAGS:
        output = folder / "float-out.onnx"
        report = llmq("quantize", folder / "float.onnx", "-o", output, "--overwrite", *flags.split())
        found = _logits(output, tokens)
        error = float(np.square(found - wanted, dtype=np.float64).sum() / np.square(wanted, dtype=np.float64).sum())
        nbytes = sum(path.stat().st_size for path in folder.glob("float-out.onnx*"))
        perplexity = f"{_perplexity(found, tokens):.2f}"
        rows.append((f"`{flags}`", f"{report['nmse']:.1e}", f"{error:.1e}", perplexity, format_size(nbytes)))
    headings = ("flags", "error of weights", "error of outputs", "perplexity", "files")
    about = (
        f"The bundled sample model, a trained Llama of 6.8 million parameters, exported by `torch.onnx.export`, on "
        f"{_WINDOWS} windows of {_CONTEXT} tokens of its held-out text, by ONNX Runtime {ort.__version__}. Errors: "
        "squared error over squares (NMSE)."
    )
    return f"{table(headings, rows)}\n\n{about}"


def _export(path: Path, folder: Path) -> np.ndarray:
    """Write the sample as a graph; returns tokens to run it on, int64 (windows, context)."""
    if not (folder / "config.json").exists():
        write_sample(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(heldout_text(), verbose=False)["input_ids"]
    tokens = np.array(ids[: _WINDOWS * _CONTEXT]).reshape(_WINDOWS, _CONTEXT)
    quiet: dict[str, Any] = {"dynamo": True, "verbose": False, "input_names": ["tokens"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: its exporter calls what it deprecates
        torch.onnx.export(_Logits(model), (torch.from_numpy(tokens),), path, **quiet)
    return tokens


def _logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: tokens})[0]
    return found


def _perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Of every token but the first of a window."""
    scores = torch.from_numpy(logits[:, :-1]).flatten(0, 1).double()
    loss = nn.functional.cross_entropy(scores, torch.from_numpy(tokens[:, 1:]).flatten())
    return float(loss.exp())
