"""`Conversation`: turns that share a cache."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llmq.runtime.generation import TextStream
from llmq.runtime.sampling import Sampling
from llmq.runtime.text import encode_chat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Unpack

    from llmq.runtime.generation import Generation
    from llmq.runtime.model import Model
    from llmq.runtime.sampling import SamplingFields

__all__ = ["Conversation"]

_log = logging.getLogger("llmq")


class Conversation:
    """A conversation with a model; made by `Model.chat`.

    Every turn is rendered anew by the model's chat template, and only tokens that differ from the last turn's are
    read. A model without a template goes on from the messages as plain text.

    Parameters
    ----------
    model : Model
    system : str or None
        A first message with the role `system`.

    Attributes
    ----------
    messages : list of dict
        Each with `role` and `content`.
    generation : Generation or None
        Of the last turn, for counts and times.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        self._model = model
        self._cache = model.new_cache()
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.generation: Generation | None = None
        if not getattr(model.tokenizer, "chat_template", None):
            _log.warning("this model has no chat template: it goes on from what you write, as plain text")

    def send(
        self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = (), **sampling: Unpack[SamplingFields]
    ) -> Iterator[str]:
        """Say something and stream the answer; what came of it is remembered even if the stream is left early.

        With the first piece asked for the turn begins; a stream that nobody asks leaves no trace.

        Parameters
        ----------
        text : str
        max_tokens : int or None
            At most so many new tokens; None means until the answer ends or the context is full.
        stop : sequence of str
            Strings that end the answer.
        **sampling
            See `Sampling`.

        Raises
        ------
        UsageError
            The conversation is rendered as nothing, or has outgrown the model's context, or a value is out of range.
        UnsupportedError
            The chat template refuses the conversation.
        """
        said = {"role": "user", "content": text}
        tokens = encode_chat(self._model.tokenizer, [*self.messages, said])
        options = Sampling(**sampling)
        # One token at least is read, for its logits.
        known = max(0, min(_common(self._cache.tokens, tokens), len(tokens) - 1))
        self._cache.truncate(known)
        self.generation = self._model.generate(
            tokens[known:],
            max_tokens=max_tokens,
            sampling=options,
            stop_tokens=self._model.stop_tokens,
            cache=self._cache,
        )
        return self._answer(said, TextStream(self.generation, self._model.tokenizer, tokens, stop))

    def _answer(self, said: dict[str, str], stream: TextStream) -> Iterator[str]:
        self.messages.append(said)
        answer = ""
        try:
            for piece in stream:
                answer += piece
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": answer})


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
