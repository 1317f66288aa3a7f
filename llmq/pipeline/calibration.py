"""The text that a run is calibrated on, as tokens in windows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.text_files import read_utf8
from llmq.errors import InputError, UsageError
from llmq.plan.calibrated import WINDOW
from llmq.runtime.text import encode, load_tokenizer
from llmq.sample import calibration_text

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.architectures import DecoderConfig

__all__ = ["BUNDLED", "Calibration", "read_calibration"]

BUNDLED: Final = "bundled"
"""Name of the text that comes with the package."""

_FEWEST: Final = 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """A text as tokens in windows that do not overlap.

    Parameters
    ----------
    tokens : int64 (windows, context)
    text : str
        Where it comes from: a file's name, or `BUNDLED`.
    sha256 : str
        Of the tokens.
    """

    tokens: np.ndarray
    text: str
    sha256: str

    def first(self, tokens: int) -> Calibration:
        """The windows of at most so many tokens from the beginning on, and one at least."""
        windows = self.tokens[: max(1, tokens // self.tokens.shape[1])]
        return Calibration(windows, self.text, _sha256(windows))

    def identity(self) -> dict[str, Any]:
        """What a run must share with another to go on with it."""
        return {"tokens": list(self.tokens.shape), "sha256": self.sha256}


def read_calibration(folder: Path, config: DecoderConfig, text: Path | None, tokens: int) -> Calibration:
    """Read a text and cut it into windows.

    Parameters
    ----------
    folder : Path
        Of the model, with its tokenizer.
    config : DecoderConfig
    text : Path or None
        UTF-8; None for the bundled one.
    tokens : int
        At most so many are used.

    Raises
    ------
    UsageError
        A text of too few tokens.
    InputError
        The text cannot be read, is not UTF-8, or has tokens that the model has not; or the model has no tokenizer.
    """
    content = calibration_text() if text is None else read_utf8(text)
    ids = np.array(encode(load_tokenizer(folder), content), np.int64)[:tokens]
    if ids.size < _FEWEST:
        raise UsageError("too little text to calibrate on", file=text, expected=f"{_FEWEST} tokens", found=ids.size)
    if int(ids.max()) >= config.vocab_size:
        raise InputError(
            "the tokenizer has tokens that the model has not",
            file=folder,
            expected=f"fewer than {config.vocab_size}",
            found=int(ids.max()),
        )
    context = min(WINDOW, config.max_position_embeddings, ids.size)
    windows = ids[: ids.size // context * context].reshape(-1, context)
    return Calibration(windows, BUNDLED if text is None else text.name, _sha256(windows))


def _sha256(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()
