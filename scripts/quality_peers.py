"""Other quantizers, each in a process of its own: what they make of a checkpoint's linears, as a dense checkpoint."""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from peer_llama import gguf_name, interleave, llama_library, write_gguf
from quality_weights import Linear, quantize_by

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LLAMA_TYPES", "AutoRoundPeer", "Energies", "HqqPeer", "LlamaPeer"]

LLAMA_TYPES: Final = {
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K": 16,
    "Q4_0": 2,
    "Q4_K": 14,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "Q3_K": 11,
    "IQ3_S": 26,
    "IQ3_XXS": 23,
    "Q2_K": 10,
    "IQ2_S": 29,
    "IQ2_XS": 20,
}
"""File types of `llama.h` by the type that all linears have in a pure file of it."""

_FLOAT32: Final = 0
"""`GGML_TYPE_F32`."""

_HALVES: Final = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
"""Rows that GGUF files hold in another order, and what says how many heads they are of."""


class Energies:
    """How strong each input of each linear is on a text: the mean square, in float32, over windows of 512 tokens.

    What the importance matrix of llama.cpp holds, by its definition.

    Parameters
    ----------
    model, text, output : str
        A float checkpoint, a text, and an .npz file to write.
    """

    def __init__(self, model: str, text: str, output: str) -> None:
        self._model, self._text, self._output = model, text, output

    def run(self) -> int:
        """Run the model once over the text; tokens read."""
        import torch

        model, tokenizer = _transformers(self._model)
        sums: dict[str, Any] = {}

        def count(name: str) -> Any:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                sums[name] = sums.get(name, 0) + inputs[0].reshape(-1, inputs[0].shape[-1]).double().square().sum(0)

            return hook

        for name, module in model.model.layers.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(count(f"model.layers.{name}.weight"))
        tokens = 0
        with torch.no_grad():
            for window in _windows(tokenizer, self._text):
                model(window)
                tokens += window.numel()
        found = {name: (total / tokens).numpy().astype(np.float32) for name, total in sums.items()}
        np.savez(self._output, **found)
        return tokens


class LlamaPeer:
    """A type of llama.cpp, by its own quantizer, dequantized by the gguf package.

    Parameters
    ----------
    model, output : str
        A float checkpoint, and a folder to write.
    kind : str
        A key of `LLAMA_TYPES`.
    importance : str or None
        A file of `Energies`.
    """

    def __init__(self, model: str, output: str, kind: str, importance: str | None) -> None:
        self._model, self._output, self._kind = Path(model), Path(output), kind
        self._energies = dict(np.load(importance)) if importance else {}

    def run(self) -> dict[str, Any]:
        """See `quality_weights.quantize_by`."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float32.gguf"
            write_gguf(self._model, source, "float32")
            return quantize_by(lambda weights: self._quantize(weights, source), self._model, self._output)

    def _quantize(self, weights: dict[str, np.ndarray], source: Path) -> dict[str, Linear]:
        made = source.with_name("quantized.gguf")
        _quantize_gguf(source, made, LLAMA_TYPES[self._kind], self._energies)
        config = json.loads((self._model / "config.json").read_text(encoding="utf-8"))
        return dict(_dequantized(made, weights, self._kind, config))


def _quantize_gguf(source: Path, output: Path, kind: int, energies: dict[str, np.ndarray]) -> None:
    """Give every linear one type; head and embeddings stay in float32."""
    library = llama_library()
    params = library.llama_model_quantize_default_params()
    params.ftype, params.pure = kind, True
    params.output_tensor_type = params.token_embedding_type = _FLOAT32
    importance = (library.llama_model_imatrix_data * (len(energies) + 1))()
    for entry, (name, energy) in zip(importance, energies.items(), strict=False):
        entry.name, entry.size = gguf_name(name).encode(), energy.size
        entry.data = energy.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if energies:
        params.imatrix = importance
    failed = library.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params))
    if failed:
        raise RuntimeError(f"llama_model_quantize failed with {failed}")


def _dequantized(
    path: Path, weights: dict[str, np.ndarray], kind: str, config: dict[str, Any]
) -> Iterator[tuple[str, Linear]]:
    import gguf

    reader: Any = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in weights.items():
        tensor = tensors[gguf_name(name)]
        if tensor.tensor_type.name != kind:
            raise ValueError(f"{name}: {tensor.tensor_type.name} in a file of {kind}")
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape).astype(np.float32)
        heads = next((config[key] for part, key in _HALVES.items() if part in name), None)
        yield name, Linear(found if heads is None else _undo(found, heads), 8.0 * tensor.n_bytes)


def _undo(weight: np.ndarray, heads: int) -> np.ndarray:
    """Bring rows back from pairs into halves."""
    order = interleave(np.arange(weight.shape[0])[:, None], heads)[:, 0]
    back: np.ndarray = weight[np.argsort(order)]
    return back


class HqqPeer:
    """HQQ, scales and zero points in float16.

    Parameters
    ----------
    model, output : str
        A float checkpoint, and a folder to write.
    bits, group_size : int
    axis : int
        Groups run along rows (1) or columns (0).
    """

    def __init__(self, model: str, output: str, bits: int, group_size: int, axis: int) -> None:
        self._model, self._output = Path(model), Path(output)
        self._settings: dict[str, Any] = {"nbits": bits, "group_size": group_size, "axis": axis}

    def run(self) -> dict[str, Any]:
        """See `quality_weights.quantize_by`."""
        return quantize_by(
            lambda weights: {name: self._quantize(weight) for name, weight in weights.items()},
            self._model,
            self._output,
        )

    def _quantize(self, weight: np.ndarray) -> Linear:
        import torch
        from hqq.core.quantize import Quantizer

        codes, meta = Quantizer.quantize(torch.from_numpy(weight), device="cpu", bitpack=False, **self._settings)
        scale, zero = (meta[key].half().float() for key in ("scale", "zero"))
        dense = ((codes.float() - zero) * scale).reshape(weight.shape)
        bits = self._settings["nbits"] * weight.size + 16 * (scale.numel() + zero.numel())
        return Linear(dense.numpy(), bits)


class AutoRoundPeer:
    """AutoRound on a CPU, symmetric: its optimized rounding to nearest, or tuned.

    Parameters
    ----------
    model, output, text : str
        A float checkpoint, a folder to write, and a text to calibrate on.
    **settings : int
        `bits`, `group_size`, `iters` (steps of tuning a block, 0 for rounding to nearest) and `nsamples` (windows of
        512 tokens, from the beginning of the text).
    """

    def __init__(self, model: str, output: str, text: str, **settings: int) -> None:
        self._model, self._output, self._text, self._settings = model, output, text, settings

    def run(self) -> dict[str, Any]:
        """See `quality_weights.quantize_by`."""
        return quantize_by(self._quantize, Path(self._model), Path(self._output))

    def _quantize(self, weights: dict[str, np.ndarray]) -> dict[str, Linear]:
        from auto_round import AutoRound

        model, tokenizer = _transformers(self._model)
        data = [{"input_ids": window} for window in _windows(tokenizer, self._text)]
        settings: dict[str, Any] = {
            **self._settings,
            "dataset": data[: self._settings["nsamples"]],
            "seqlen": 512,
            "sym": True,
        }
        tuned = AutoRound(model, tokenizer, device_map="cpu", **settings).quantize()
        modules = dict((tuned[0] if isinstance(tuned, tuple) else tuned).named_modules())
        made = {}
        for name, weight in weights.items():
            module = modules[name.removesuffix(".weight")]
            bits = self._settings["bits"] * weight.size + 16 * module.scale.numel()
            made[name] = Linear(module.weight.detach().float().numpy(), bits)
        return made


def _transformers(path: str) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def _windows(tokenizer: Any, text: str) -> Iterator[Any]:
    """Whole windows of 512 tokens of a text, int64 (1, 512)."""
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), return_tensors="pt", verbose=False)["input_ids"]
    for start in range(0, ids.shape[1] - 511, 512):
        yield ids[:, start : start + 512]
