"""Real weights and activations for the lessons: of the sample model, on its held-out text."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes  # noqa: F401  # lets safetensors read bfloat16
import numpy as np
from safetensors.numpy import load_file

import llmq
from llmq.evaluate.perplexity import tokenize
from llmq.sample import heldout_text, write_sample

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Sample"]

_WINDOW: Final = 256
_WINDOWS: Final = 4


class Sample:
    """The sample model, as lessons look at it.

    Parameters
    ----------
    folder : Path
        Where it is, or is written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Weights of the linears of all blocks by name, float32 (out_features, in_features)."""
        files = sorted(write_sample(self.folder).glob("*.safetensors"))
        tensors = {name: weight for file in files for name, weight in load_file(file).items()}
        return {name: tensors[name].astype(np.float32) for name in sorted(tensors) if name.endswith("_proj.weight")}

    @cached_property
    def model(self) -> Any:
        """The model with exact activations."""
        return llmq.load(write_sample(self.folder), compute="float32")

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of the held-out text, int64 (n,)."""
        return tokenize(self.model.tokenizer, heldout_text())

    def activations(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """What enters the last projection of a block's MLP, in the text's first 1,024 tokens and in the next 1,024.

        Returns
        -------
        calibration, unseen : float32 (1024, intermediate_size)
        """
        if layer in self._seen:
            return self._seen[layer]
        decoder = self.model.decoder
        recorder = _Recorder(decoder.blocks[layer].mlp.down)
        blocks = list(decoder.blocks)
        blocks[layer] = replace(blocks[layer], mlp=replace(blocks[layer].mlp, down=recorder))
        watched = replace(decoder, blocks=tuple(blocks))
        for start in range(0, 2 * _WINDOWS * _WINDOW, _WINDOW):
            part = self.tokens[start : start + _WINDOW]
            watched.hidden(part, self.model.new_cache(part.size), part.size)
        self._seen[layer] = np.concatenate(recorder.seen[:_WINDOWS]), np.concatenate(recorder.seen[_WINDOWS:])
        return self._seen[layer]


class _Recorder:
    """A linear that keeps what it is given."""

    def __init__(self, linear: Any) -> None:
        self._linear = linear
        self.seen: list[np.ndarray] = []

    def __call__(self, x: np.ndarray, *, out: np.ndarray | None = None) -> Any:
        self.seen.append(x.copy())
        return self._linear(x, out=out)
