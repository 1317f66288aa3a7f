"""Whether a decoder's graph is sound, and computes what llmq computes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.errors import UsageError, VerificationError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmq.architectures import DecoderConfig
    from llmq.runtime.model import Model

__all__ = ["CHECKED_TOKENS", "LIMITS", "Agreement", "agreement", "check_file", "has_onnxruntime"]

LIMITS: Final = {"float32": 1e-3, "int8": 0.1}
"""Largest difference of logits, over their range, by the `compute` of the graph: above it something is wrong."""

_PROMPT: Final = 12
_LATER: Final = 4
_PADDED: Final = 5

CHECKED_TOKENS: Final = 2 * (_PROMPT + _LATER) - _PADDED
"""That `agreement` runs, without padding."""


@dataclass(frozen=True)
class Agreement:
    """How far the logits of a graph are from those of `llmq.load(..., compute="float32")`.

    Parameters
    ----------
    tokens : int
        Positions compared: of a prompt, of tokens behind it with a cache, and of a text padded on its left.
    max_difference : float
    logits_range : float
        Largest logit less smallest.
    """

    tokens: int
    max_difference: float
    logits_range: float

    @property
    def relative(self) -> float:
        """Largest difference over the range."""
        return self.max_difference / max(self.logits_range, float(np.finfo(np.float32).tiny))

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` shows."""
        return {
            "tokens": self.tokens,
            "max_difference": self.max_difference,
            "logits_range": self.logits_range,
            "relative": self.relative,
        }


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def check_file(path: Path) -> None:
    """Run the checker of ONNX over a graph in a file, with the files that it points to.

    Raises
    ------
    VerificationError
        It finds fault.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"not a sound graph: {first_line(error)}", file=path.name) from error


def agreement(path: Path, model: Model) -> Agreement:
    """Run a graph of `export_decoder` and the checkpoint it was made of, and compare their logits.

    A prompt goes through whole, beside a shorter one padded on its left; then some tokens one by one, with the cache.

    Parameters
    ----------
    path : Path
        The graph.
    model : Model
        `llmq.load(checkpoint, compute="float32")`.

    Raises
    ------
    UsageError
        ONNX Runtime is not installed.
    VerificationError
        ONNX Runtime refuses the graph.
    """
    if not has_onnxruntime():
        raise UsageError("needs the package onnxruntime", hint='pip install "numba-llmq[onnx]"')
    count = _PROMPT + _LATER
    texts = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, count))
    ours = model(texts[0]), model(texts[1, _PADDED:])
    differences = []
    for end, theirs in _run(_session(path), model.config, texts):
        # The graph may give logits of the last position only.
        for behind, rows in enumerate(theirs.swapaxes(0, 1)[::-1], start=1):
            position = end - behind
            differences.append(np.abs(rows[0] - ours[0][position]).max())
            if position >= _PADDED:
                differences.append(np.abs(rows[1] - ours[1][position - _PADDED]).max())
    worst = float(np.max(differences))
    spread = float(max(o.max() for o in ours) - min(o.min() for o in ours))
    return Agreement(len(differences), float("inf") if np.isnan(worst) else worst, spread)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise VerificationError(
            f"ONNX Runtime {onnxruntime.__version__} refuses it: {first_line(error)}", file=path.name
        ) from error


def _run(session: Any, config: DecoderConfig, texts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Logits (2, positions, vocab_size) of a prompt and of each token behind it, with the position that follows."""
    mask = np.ones(texts.shape, np.int64)
    mask[1, :_PADDED] = 0
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    empty = np.zeros((2, config.n_kv_heads, 0, config.head_dim), np.float32)
    names = [f"{layer}.{part}" for layer in range(config.n_layers) for part in ("key", "value")]
    past = [empty] * len(names)
    for start, end in [(0, _PROMPT), *((n, n + 1) for n in range(_PROMPT, _PROMPT + _LATER))]:
        inputs = {
            "input_ids": texts[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        inputs |= {f"past_key_values.{name}": array for name, array in zip(names, past, strict=True)}
        logits, *past = session.run(["logits", *(f"present.{name}" for name in names)], inputs)
        yield end, logits
