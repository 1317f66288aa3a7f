"""Perplexity of a model on a text, and how far its predictions are from those of another model."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmq.errors import InputError, UsageError
from llmq.evaluate.blocks import run_blocks
from llmq.evaluate.divergence import agreement, divergence, log_softmax
from llmq.evaluate.estimates import estimate
from llmq.evaluate.memory import logit_rows, states_budget
from llmq.runtime.text import check_ids, tokens_of
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.evaluate.blocks import LanguageModel
    from llmq.evaluate.estimates import Estimate
    from llmq.runtime.states import HiddenStates
    from llmq.system.progress import Progress

__all__ = ["Evaluation", "evaluate", "tokenize"]

_log = logging.getLogger("llmq")


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    What ends in `_se` is the standard error of what stands before it, were all positions independent; what ends in
    `_se_clustered` is the one with windows as clusters (see `estimate`), NaN for a single window.

    Parameters
    ----------
    perplexity : float
        `exp` of the mean negative log-likelihood of a token; its errors by the delta method: perplexity times the
        standard error of that mean.
    perplexity_se, perplexity_se_clustered : float
    tokens : int
        Tokens scored.
    windows : int
        Windows they stand in.
    context : int
        Tokens of a window.
    compute : str
        Of the model.
    base_perplexity : float or None
        Of the base on the same tokens.
    delta_ln_ppl, delta_ln_ppl_se, delta_ln_ppl_se_clustered : float or None
        How much the logarithm of the perplexity is above that of the base: paired, position by position, so that what
        is hard for both does not count.
    kl_mean, kl_mean_se, kl_mean_se_clustered, kl_median, kl_p99, kl_max : float or None
        Of the Kullback-Leibler divergence of the model from the base, a position at a time, in nats.
    top1_agreement, top1_agreement_se, top1_agreement_se_clustered : float or None
        Share of positions at which both find the same token the likeliest.
    """

    perplexity: float
    perplexity_se: float
    perplexity_se_clustered: float
    tokens: int
    windows: int
    context: int
    compute: str
    base_perplexity: float | None = None
    delta_ln_ppl: float | None = None
    delta_ln_ppl_se: float | None = None
    delta_ln_ppl_se_clustered: float | None = None
    kl_mean: float | None = None
    kl_mean_se: float | None = None
    kl_mean_se_clustered: float | None = None
    kl_median: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    top1_agreement_se: float | None = None
    top1_agreement_se_clustered: float | None = None

    @property
    def protocol(self) -> str:
        """How it was measured, in a sentence."""
        return (
            f"non-overlapping windows of {self.context} tokens, every position but the first of a window scored, "
            f"no BOS added unless the tokenizer does, {self.compute} activations"
        )


def tokenize(tokenizer: Any, text: str) -> np.ndarray:
    """Tokens of a whole text, int64 (n,), with special tokens only where the tokenizer adds them by itself."""
    return np.array(tokens_of(tokenizer, text), np.int64)


def evaluate(
    model: LanguageModel,
    tokens: np.ndarray | Sequence[int],
    *,
    context: int = 512,
    max_tokens: int | None = None,
    base: LanguageModel | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a text in non-overlapping windows, block by block.

    All windows go through the first block, then all through the next: of the weights, one block is in memory at a time,
    and both heads in the end. Logits are made and used in pieces, and never kept.

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
    max_memory : int, optional
        Bytes of memory to keep to; see `states_budget`.
    progress : Progress, optional
        Told of the tokens, a share of them at each block.

    Returns
    -------
    Evaluation

    Raises
    ------
    UsageError
        A window or a text of fewer than two tokens; a base of another vocabulary.
    InputError
        The model gives NaN, or does not have a token.
    ResourceError
        `max_memory` is too small, or hidden states find no room.
    """
    ids = _checked(np.asarray(tokens)[:max_tokens], model, base, context)
    windows = [w for w in (ids[i : i + context] for i in range(0, ids.size, context)) if w.size > 1]
    if not windows:
        raise UsageError("the text is too short", expected="at least 2 tokens", found=ids.size)
    models = [model] if base is None else [model, base]
    read = [window[:-1] for window in windows]
    budget = states_budget(models, max(part.size for part in read), max_memory)
    told = progress or NullProgress()
    total = sum(window.size for window in windows)
    told.start("scoring", total, "tokens")
    steps = 1 + sum(len(m.decoder.blocks) for m in models)
    advance = _Advance(told, total, steps * sum(part.size for part in read))
    with contextlib.ExitStack() as kept:
        states = [kept.enter_context(run_blocks(one, read, budget, advance)) for one in models]
        scores = _score(models, states, np.concatenate([window[1:] for window in windows]), advance)
    told.finish()
    return scores.summary(np.array([part.size for part in read]), context, str(model.compute))


def _checked(ids: np.ndarray, model: LanguageModel, base: LanguageModel | None, context: int) -> np.ndarray:
    """Token ids that the model has, int64 (n,)."""
    if context < 2:
        raise UsageError("the context must be at least 2 tokens", found=context)
    vocabulary = model.config.vocab_size
    if base is not None and base.config.vocab_size != vocabulary:
        raise UsageError(
            "the base has another vocabulary", expected=f"{vocabulary} tokens", found=base.config.vocab_size
        )
    ids = check_ids(ids, vocabulary)
    if model.context is not None and min(context, ids.size) > model.context:
        _log.warning("windows of %d tokens are longer than the %d that the model was made for", context, model.context)
    return ids


class _Advance:
    """Tells of tokens while they go through one block after another, and then through the heads.

    Parameters
    ----------
    told : Progress
    total : int
        Tokens to tell of.
    steps : int
        Calls' counts that make up all of them.
    """

    def __init__(self, told: Progress, total: int, steps: int) -> None:
        self._told, self._total, self._steps = told, total, steps
        self._done = 0

    def __call__(self, count: int) -> None:
        """Count tokens that went through a block."""
        before = self._done * self._total // self._steps
        self._done += count
        self._told.advance(self._done * self._total // self._steps - before)


class _Scores:
    """What is kept of every scored position: four numbers."""

    def __init__(self) -> None:
        self.losses: list[np.ndarray] = []
        self.base_losses: list[np.ndarray] = []
        self.divergences: list[np.ndarray] = []
        self.agreements: list[np.ndarray] = []

    def summary(self, sizes: np.ndarray, context: int, compute: str) -> Evaluation:
        """Reduce the positions, which stand in windows of some sizes, to an `Evaluation`."""
        losses = np.concatenate(self.losses)
        loss = estimate(losses, sizes)
        perplexity = _exp(loss.mean)
        error = loss.scaled(perplexity)
        against: dict[str, Any] = {}
        if self.divergences:
            base = np.concatenate(self.base_losses)
            kl = np.concatenate(self.divergences)
            against = {
                "base_perplexity": _exp(float(base.mean())),
                **_named("delta_ln_ppl", estimate(losses - base, sizes)),
                **_named("kl_mean", estimate(kl, sizes)),
                "kl_median": float(np.median(kl)),
                "kl_p99": float(np.percentile(kl, 99)),
                "kl_max": float(kl.max()),
                **_named("top1_agreement", estimate(np.concatenate(self.agreements).astype(np.float64), sizes)),
            }
        return Evaluation(
            perplexity, error.se, error.se_clustered, losses.size, sizes.size, context, compute, **against
        )


def _named(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.mean, f"{name}_se": found.se, f"{name}_se_clustered": found.se_clustered}


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _score(
    models: Sequence[LanguageModel], states: Sequence[HiddenStates], targets: np.ndarray, advance: _Advance
) -> _Scores:
    """Norm and head of each model, piece by piece."""
    scores = _Scores()
    step = logit_rows(models[0].config.vocab_size)
    for start in range(0, targets.size, step):
        stop = min(targets.size, start + step)
        logits, *others = (_logits(m, s.read(start, stop)) for m, s in zip(models, states, strict=True))
        log_p, rows = log_softmax(logits), np.arange(stop - start)
        scores.losses.append(-log_p[rows, targets[start:stop]])
        for other in others:
            log_base = log_softmax(other)
            scores.base_losses.append(-log_base[rows, targets[start:stop]])
            scores.divergences.append(divergence(log_base, log_p))
            scores.agreements.append(agreement(other, logits))
        advance(stop - start)
    return scores


def _logits(model: LanguageModel, x: np.ndarray) -> np.ndarray:
    logits = model.decoder.logits(x)
    if np.isnan(logits).any():
        raise InputError("the model gives NaN: its weights are corrupt, or overflow")
    return logits
