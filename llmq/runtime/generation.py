"""`Generation`: tokens one by one, and what making them took. `TextStream`: the same as text."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmq.errors import ResourceError, UsageError
from llmq.runtime.lookup import Lookup
from llmq.runtime.sampling import sample
from llmq.runtime.stops import StopStrings
from llmq.runtime.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from llmq.runtime.cache import KVCache
    from llmq.runtime.model import Model
    from llmq.runtime.sampling import Sampling

__all__ = ["Generation", "TextStream"]

_log = logging.getLogger("llmq")

StopReason = Literal["stop", "length", "context"]


class Generation(Iterator[int]):
    """New tokens, made as they are asked for. Tokens that end the text are not among them.

    Parameters
    ----------
    model : Model
    prompt : sequence of int
        Tokens to go on from, behind those of `cache`.
    max_tokens : int or None
        At most so many; None means until the text ends or the context is full.
    sampling : Sampling
    stop_tokens : collection of int
        Ids that end the text.
    cache : KVCache
        In the end it holds the prompt and all new tokens but the last.
    speculate : int
        Tokens to guess at most and check in one pass; none with a temperature, or where positions stretch.

    Raises
    ------
    UsageError
        No prompt, a prompt longer than the context, or a `max_tokens` that is negative or no whole number.

    Attributes
    ----------
    prompt_tokens, tokens : int
        Tokens read and made so far.
    guessed, accepted : int
        Tokens that were guessed, and those of them that were right.
    prompt_seconds, seconds : float
        Time to read the prompt, and to make the tokens after the first, which the prompt gives. The time that
        whoever asks takes between two tokens does not count.
    stop_reason : {"stop", "length", "context"} or None
        None until the end: a token that ends the text, `max_tokens`, or a full context.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        *,
        max_tokens: int | None,
        sampling: Sampling,
        stop_tokens: frozenset[int],
        cache: KVCache,
        speculate: int = 0,
    ) -> None:
        self._model = model
        self._next = list(prompt)
        self.sampling = sampling
        self._generator = sampling.generator()
        self._stop_tokens = stop_tokens
        self._cache = cache
        self._max_tokens = max_tokens
        self._guesses = 0 if sampling.temp > 0 or model.config.rope.kind == "dynamic" else speculate
        self._lookup = Lookup()
        self._ready: deque[int] = deque()
        self.prompt_tokens = len(self._next)
        self.tokens = self.guessed = self.accepted = 0
        self.prompt_seconds = 0.0
        self.seconds = 0.0
        self.stop_reason: StopReason | None = None
        self._logits = np.empty(model.config.vocab_size, np.float32)
        self._check(cache.length + len(self._next))
        self._reserve()

    def _check(self, length: int) -> None:
        limit = self._model.context
        if not self._next:
            raise UsageError("the prompt is empty")
        most = self._max_tokens
        if most is not None and (isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 0):
            raise UsageError("max_tokens must be a whole number that is not negative", found=most)
        if limit is not None and length > limit:
            own = limit == self._model.config.max_position_embeddings
            what = "the context the model was made for" if own else "the context there is room for"
            raise UsageError(
                f"the prompt is longer than {what}",
                expected=f"at most {limit} tokens",
                found=length,
                hint="a shorter text" if own else "a larger --context, or a shorter text",
            )

    def _reserve(self) -> None:
        """Make room for all tokens at once where their number is known."""
        if self._max_tokens is None:
            return
        most = self._model.context or self._model.config.max_position_embeddings
        wanted = self._cache.length + len(self._next) + self._max_tokens
        # The text may end early: where there is no such room, the cache grows as far as it can.
        with contextlib.suppress(ResourceError):
            self._cache.reserve(min(wanted, most))

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there was no second."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0

    def __next__(self) -> int:
        if self.stop_reason is None and self.tokens == self._max_tokens:
            self.stop_reason = "length"
        if self.stop_reason is None and not self._ready and self._model.context == self._cache.length:
            self.stop_reason = "context"
            _log.warning("stopped: the context of %d tokens is full", self._cache.length)
        if self.stop_reason is not None:
            raise StopIteration
        if not self._ready:
            started = time.perf_counter()
            self._ready.extend(self._advance())
            taken = time.perf_counter() - started
            if self.tokens == 0:
                self.prompt_seconds = taken
            else:
                self.seconds += taken
        token = self._ready.popleft()
        if token in self._stop_tokens:
            self.end()
            raise StopIteration
        self.tokens += 1
        self._next = [token]
        return token

    def _advance(self) -> list[int]:
        """Run what is next through the model: one token more, or several where guesses were right."""
        guesses = self._guess()
        if not guesses:
            logits = self._model.last_logits(self._next, self._cache, out=self._logits)
            return [sample(logits, self.sampling, self._generator, self._cache.scratch)]
        found = self._model.logits_one_by_one([*self._next, *guesses], self._cache)
        chosen = [sample(row, self.sampling, self._generator, self._cache.scratch) for row in found]
        right = next((i for i, guess in enumerate(guesses) if guess != chosen[i]), len(guesses))
        self._cache.truncate(self._cache.length - len(guesses) + right)
        self.guessed += len(guesses)
        self.accepted += right
        return chosen[: right + 1]

    def _guess(self) -> list[int]:
        """Guess tokens behind the next one; none while the prompt is read."""
        if not self._guesses or self.tokens == 0:
            return []
        limits = [self._guesses]
        if self._max_tokens is not None:
            limits.append(self._max_tokens - self.tokens - 1)
        if self._model.context is not None:
            limits.append(self._model.context - self._cache.length - 1)
        if min(limits) < 1:
            return []
        return self._lookup.guess([*self._cache.tokens, *self._next], min(limits))

    def end(self) -> None:
        """Make no more tokens, and forget those made ahead."""
        self._cache.truncate(self._cache.length - len(self._ready))
        self._ready.clear()
        self.stop_reason = self.stop_reason or "stop"


class TextStream(Iterator[str]):
    """The text of a generation, in pieces of whole characters.

    Parameters
    ----------
    generation : Generation
    tokenizer : transformers tokenizer
    prompt : sequence of int
        Tokens before the text.
    stop : sequence of str
        Strings that end the text; they are not part of it.
    """

    def __init__(self, generation: Generation, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.generation = generation
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stops = StopStrings(stop)
        self._ended = False

    def __next__(self) -> str:
        while not self._ended:
            token = next(self.generation, None)
            if token is None:
                self._ended = True
                piece = self._stops.add(self._detokenizer.rest())
                piece += self._stops.rest()
            else:
                piece = self._stops.add(self._detokenizer.add(token))
                if self._stops.hit:
                    self._ended = True
                    self.generation.end()
            if piece:
                return piece
        raise StopIteration
