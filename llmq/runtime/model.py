"""`Model`: a decoder with its tokenizer."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.errors import UsageError
from llmq.runtime.cache import KVCache
from llmq.runtime.conversation import Conversation
from llmq.runtime.generation import Generation, TextStream
from llmq.runtime.sampling import Sampling, sample
from llmq.runtime.text import check_ids, encode, load_tokenizer
from llmq_kernels.crew import muster
from llmq_kernels.jit import threads

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from typing import Unpack

    from llmq.architectures import DecoderConfig
    from llmq.checkpoint.mapped import MappedCheckpoint
    from llmq.runtime.decoder import Decoder
    from llmq.runtime.linear import Compute
    from llmq.runtime.sampling import SamplingFields

__all__ = ["Model"]

_log = logging.getLogger("llmq")

_CHUNK: Final = 256
"""Tokens of a prompt that go through the decoder at once: enough to make use of every weight that is read."""

_SEVERAL: Final = 5
"""Tokens from which on kernels no longer have variants for each number."""


class Model:
    """A checkpoint ready to run; made by `llmq.load`.

    Parameters
    ----------
    decoder : Decoder
    folder : Path
        Where the tokenizer is.
    compute : {"int8", "float32"}
        Of packed layers.
    bits_per_weight : float
        Bits of all tensors over all parameters.
    stop_tokens : frozenset of int
        Ids that end a text, by the configuration files.
    kv_bits : {32, 16, 8} or None
        Bits of an element of the caches: float32, bfloat16 or 8-bit integers. None means 16, and 32 where `compute` is
        "float32".
    mapped : MappedCheckpoint or None
        What the weights are views of.

    Raises
    ------
    UsageError
        Other `kv_bits`.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        folder: Path,
        compute: Compute,
        bits_per_weight: float,
        stop_tokens: frozenset[int],
        kv_bits: int | None = None,
        mapped: MappedCheckpoint | None = None,
    ) -> None:
        if kv_bits not in (None, 32, 16, 8):
            raise UsageError("unknown kv_bits", expected="32, 16 or 8", found=kv_bits)
        self.decoder = decoder
        self.folder = folder
        self.compute = compute
        self.bits_per_weight = bits_per_weight
        self.kv_bits = kv_bits or (32 if compute == "float32" else 16)
        self._mapped = mapped
        self._configured_stops = stop_tokens
        self._warned = False

    @property
    def config(self) -> DecoderConfig:
        """Sizes and features of the decoder."""
        return self.decoder.config

    @property
    def context(self) -> int | None:
        """Tokens of context that generation keeps to; None where rotary positions stretch with the text."""
        return None if self.config.rope.kind == "dynamic" else self.config.max_position_embeddings

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, loaded when first asked for. Raises InputError where there is none."""
        return load_tokenizer(self.folder)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end a text: of `generation_config.json`, of `config.json` and of the tokenizer."""
        end = self.tokenizer.eos_token_id
        return self._configured_stops | (frozenset() if end is None else {int(end)})

    def warm_up(self, prompt: int, sampling: Sampling | None = None) -> None:
        """Compile, or load from their cache, the kernels that reading `prompt` tokens and making others takes.

        What is timed afterwards is the work itself. A few tokens go through the head and one block of each kind.

        Parameters
        ----------
        prompt : int
            Tokens, at least one.
        sampling : Sampling, optional
            Greedy if left out.
        """
        decoder = self.decoder.abridged()
        cache = self.new_cache(2 * _CHUNK)
        rules = sampling or Sampling()
        # All numbers of tokens beyond a few run the same kernels; what is left of a prompt may be a few.
        for count in {min(prompt, _SEVERAL), min((prompt - 1) % _CHUNK + 1, _SEVERAL)}:
            x = decoder.hidden(np.zeros(count, np.int64), cache, _CHUNK)
        sample(decoder.logits(x[-1:])[0], rules, rules.generator(), cache.scratch)
        cache.extend([0] * _CHUNK)  # a context so long that attention divides it, of whatever the memory holds
        decoder.hidden(np.zeros(1, np.int64), cache, _CHUNK)
        if threads() > 1:
            muster()  # work as small as this does not

    def release(self) -> None:
        """Give back the memory of weights read so far; they are read again, from the page cache, when they are used."""
        if self._mapped is not None:
            self._mapped.release()

    def new_cache(self, capacity: int = _CHUNK) -> KVCache:
        """Make an empty cache with room for `capacity` tokens; it grows as needed."""
        return KVCache(self.config, capacity, self.kv_bits)

    def __call__(self, tokens: Sequence[int] | np.ndarray, cache: KVCache | None = None) -> np.ndarray:
        """Logits after each token.

        Parameters
        ----------
        tokens : integers (n,)
        cache : KVCache, optional
            What came before; the tokens are added to it. Without one, nothing came before.

        Returns
        -------
        float32 (n, vocab_size)

        Raises
        ------
        InputError
            A token that the model does not have.
        ResourceError
            Not enough memory for the cache.
        """
        ids, cache = self._prepare(tokens, cache)
        logits = np.empty((ids.size, self.config.vocab_size), np.float32)
        length = cache.length + ids.size
        for start in range(0, ids.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            self.decoder.logits(self.decoder.hidden(ids[part], cache, length), out=logits[part])
        return logits

    def last_logits(
        self, tokens: Sequence[int] | np.ndarray, cache: KVCache, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits after the last of some tokens, float32 (vocab_size,); the head runs once. See `__call__`."""
        ids, cache = self._prepare(tokens, cache)
        if not ids.size:
            raise UsageError("no tokens")
        length = cache.length + ids.size
        for start in range(0, ids.size, _CHUNK):
            x = self.decoder.hidden(ids[start : start + _CHUNK], cache, length)
        last: np.ndarray = self.decoder.logits(x[-1:], out=None if out is None else out[None])[0]
        return last

    def generate(
        self,
        tokens: Sequence[int] | np.ndarray,
        *,
        max_tokens: int | None = 256,
        sampling: Sampling | None = None,
        stop_tokens: Collection[int] | None = None,
        cache: KVCache | None = None,
    ) -> Generation:
        """Go on from some tokens.

        Parameters
        ----------
        tokens : integers (n,)
            At least one.
        max_tokens : int or None
            At most so many; None means until the text ends or the context is full.
        sampling : Sampling, optional
            Greedy if left out.
        stop_tokens : collection of int, optional
            Ids that end the text, instead of those of the configuration files.
        cache : KVCache, optional
            What came before `tokens`.

        Returns
        -------
        Generation
            Yields ids; counts and times are its attributes.

        Raises
        ------
        UsageError
            No tokens, or more than the model's context.
        """
        stops = self._configured_stops if stop_tokens is None else frozenset(stop_tokens)
        return Generation(
            self,
            check_ids(tokens, self.config.vocab_size).tolist(),
            max_tokens=max_tokens,
            sampling=sampling or Sampling(),
            stop_tokens=stops,
            cache=cache or self.new_cache(),
        )

    def stream(
        self, prompt: str, *, max_tokens: int | None = 256, stop: Sequence[str] = (), **sampling: Unpack[SamplingFields]
    ) -> TextStream:
        """Go on from a text.

        Parameters
        ----------
        prompt : str
        max_tokens : int or None
            At most so many new tokens; None means until the text ends or the context is full.
        stop : sequence of str
            Strings that end the text; they are not part of it.
        **sampling
            `temp` (0: always the likeliest token), `top_k`, `top_p`, `min_p`, `seed`; see `Sampling`.

        Returns
        -------
        TextStream
            Yields pieces of text; its `generation` has counts and times.

        Raises
        ------
        InputError
            The folder has no tokenizer.
        UsageError
            An empty prompt, one longer than the model's context, or a value out of range.
        """
        rules = Sampling(**sampling)  # before the tokenizer is loaded, which takes a second
        tokens = encode(self.tokenizer, prompt)
        generation = self.generate(tokens, max_tokens=max_tokens, sampling=rules, stop_tokens=self.stop_tokens)
        return TextStream(generation, self.tokenizer, tokens, stop)

    def chat(self, system: str | None = None) -> Conversation:
        """Begin a conversation, with a system message or none. It keeps its cache between turns."""
        return Conversation(self, system)

    def _prepare(self, tokens: Sequence[int] | np.ndarray, cache: KVCache | None) -> tuple[np.ndarray, KVCache]:
        ids = check_ids(tokens, self.config.vocab_size)
        cache = self.new_cache(ids.size) if cache is None else cache
        length = cache.length + ids.size
        if self.context is not None and length > self.context and not self._warned:
            self._warned = True
            _log.warning("%d tokens are more than the context of %d the model was made for", length, self.context)
        return ids, cache
