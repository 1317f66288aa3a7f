"""Perplexity of a model on a text, and how far its predictions are from those of another model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from llmq.errors import InputError, UsageError
from llmq.evaluate.divergence import agreement, divergence, log_softmax
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmq.architectures import DecoderConfig
    from llmq.system.progress import Progress

__all__ = ["Evaluation", "LanguageModel", "evaluate", "tokenize"]

_LOGIT_BYTES: Final = 32 << 20
"""Logits held at a time, of each model."""


class LanguageModel(Protocol):
    """What is needed of a model; `llmq.load` gives one."""

    compute: Any

    @property
    def config(self) -> DecoderConfig:
        """Sizes."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens the model was made for; None where positions depend on the length of the text."""
        ...

    def __call__(self, tokens: Sequence[int] | np.ndarray, cache: Any = None) -> np.ndarray:
        """Logits after each token, float32 (n, vocab_size)."""
        ...

    def new_cache(self, capacity: int = ...) -> Any:
        """Make a cache of the tokens before."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Parameters
    ----------
    perplexity : float
        `exp` of the mean negative log-likelihood of a token.
    perplexity_se : float
        Its standard error by the delta method: perplexity times the standard error of that mean.
    tokens : int
        Tokens scored.
    context : int
        Tokens of a window.
    compute : str
        Of the model.
    kl_mean, kl_median, kl_p99, kl_max : float or None
        Of the Kullback-Leibler divergence of the model from the base, a position at a time, in nats.
    top1_agreement : float or None
        Share of positions at which both find the same token the likeliest.
    """

    perplexity: float
    perplexity_se: float
    tokens: int
    context: int
    compute: str
    kl_mean: float | None = None
    kl_median: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None

    @property
    def protocol(self) -> str:
        """How it was measured, in a sentence."""
        return (
            f"non-overlapping windows of {self.context} tokens, every position but the first of a window scored, "
            f"no BOS added unless the tokenizer does, {self.compute} activations"
        )


def tokenize(tokenizer: Any, text: str) -> np.ndarray:
    """Tokens of a whole text, int64 (n,), with special tokens only where the tokenizer adds them by itself."""
    return np.array(tokenizer(text, verbose=False)["input_ids"], np.int64)


def evaluate(
    model: LanguageModel,
    tokens: np.ndarray | Sequence[int],
    *,
    context: int = 512,
    max_tokens: int | None = None,
    base: LanguageModel | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a text in non-overlapping windows; logits are never kept.

    Parameters
    ----------
    model : Model
    tokens : integers (n,)
        From `tokenize`.
    context : int
        Tokens of a window; the last one may be shorter, and counts if it has at least two.
    max_tokens : int, optional
        Use no more than so many tokens of the text.
    base : Model, optional
        Measure the divergence from this one too; it must have the same tokenizer.
    progress : Progress, optional
        Told of the tokens.

    Returns
    -------
    Evaluation

    Raises
    ------
    UsageError
        A window or a text of fewer than two tokens; a base of another vocabulary.
    InputError
        The model gives NaN.
    """
    ids = np.asarray(tokens)[:max_tokens]
    if context < 2:
        raise UsageError("the context must be at least 2 tokens", found=context)
    if base is not None and base.config.vocab_size != model.config.vocab_size:
        expected, found = model.config.vocab_size, base.config.vocab_size
        raise UsageError("the base has another vocabulary", expected=f"{expected} tokens", found=found)
    windows = [w for w in (ids[i : i + context] for i in range(0, ids.size, context)) if w.size > 1]
    if not windows:
        raise UsageError("the text is too short", expected="at least 2 tokens", found=ids.size)
    told = progress or NullProgress()
    told.start("scoring", sum(window.size for window in windows), "tokens")
    scores = _Scores()
    for window in windows:
        _score(window, model, base, scores)
        told.advance(window.size)
    told.finish()
    return scores.summary(context, str(model.compute))


class _Scores:
    """What is kept of every scored position: three numbers."""

    def __init__(self) -> None:
        self.losses: list[np.ndarray] = []
        self.divergences: list[np.ndarray] = []
        self.agreements: list[np.ndarray] = []

    def summary(self, context: int, compute: str) -> Evaluation:
        """Reduce the positions to an `Evaluation`."""
        losses = np.concatenate(self.losses)
        perplexity = _exp(float(losses.mean()))
        spread = float(losses.std(ddof=1)) if losses.size > 1 else math.nan
        error = perplexity * spread / math.sqrt(losses.size)
        measured = Evaluation(perplexity, error, losses.size, context, compute)
        if not self.divergences:
            return measured
        kl = np.concatenate(self.divergences)
        return replace(
            measured,
            kl_mean=float(kl.mean()),
            kl_median=float(np.median(kl)),
            kl_p99=float(np.percentile(kl, 99)),
            kl_max=float(kl.max()),
            top1_agreement=float(np.concatenate(self.agreements).mean()),
        )


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _score(window: np.ndarray, model: LanguageModel, base: LanguageModel | None, scores: _Scores) -> None:
    read, targets = window[:-1], window[1:]
    parts = [_logits(m, read) for m in (model, base) if m is not None]
    done = 0
    for logits, *others in zip(*parts, strict=True):
        log_p = log_softmax(logits)
        rows = np.arange(log_p.shape[0])
        scores.losses.append(-log_p[rows, targets[done : done + rows.size]])
        for other in others:
            scores.divergences.append(divergence(log_softmax(other), log_p))
            scores.agreements.append(agreement(other, logits))
        done += rows.size


def _logits(model: LanguageModel, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Logits of a window in pieces, so that a large vocabulary takes little memory."""
    step = max(16, min(256, _LOGIT_BYTES // (4 * model.config.vocab_size)))
    # Where positions depend on the length of the text, it cannot be fed in pieces.
    pieces = range(0, ids.size, step if model.context is not None else ids.size)
    cache = model.new_cache(ids.size)
    for start in pieces:
        logits = model(ids[start : start + pieces.step], cache)
        if np.isnan(logits).any():
            raise InputError("the model gives NaN: its weights are corrupt, or overflow")
        yield logits
