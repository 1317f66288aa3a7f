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
from llmq.runtime.residency import CHUNK
from llmq.runtime.sampling import Sampling, sample
from llmq.runtime.text import check_ids, encode, load_tokenizer
from llmq_kernels.crew import muster
from llmq_kernels.jit import note_run, threads

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from typing import Unpack

    from llmq.architectures import DecoderConfig
    from llmq.runtime.decoder import Decoder
    from llmq.runtime.held import Held
    from llmq.runtime.linear import Compute
    from llmq.runtime.residency import Residency
    from llmq.runtime.sampling import SamplingFields

__all__ = ["Model"]

_log = logging.getLogger("llmq")

_GUESSES: Final = 8

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
    kv_bits : {32, 16, 8, 4}
        Bits of an element of the caches: float32, bfloat16, or integers of 8 or 4 bits.
    held : Held or None
        What the weights are views of.
    work : str
        What tells its kernels apart from those of other models.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        folder: Path,
        compute: Compute,
        bits_per_weight: float,
        stop_tokens: frozenset[int],
        kv_bits: int = 16,
        held: Held | None = None,
        work: str = "",
    ) -> None:
        self.decoder = decoder
        self.folder = folder
        self.compute = compute
        self.bits_per_weight = bits_per_weight
        self.kv_bits = kv_bits
        self._held = held
        self._work = work
        self._wave = CHUNK if held is None or held.residency is None else held.residency.wave
        self._configured_stops = stop_tokens
        self._warned = False

    @property
    def config(self) -> DecoderConfig:
        """Sizes and features of the decoder."""
        return self.decoder.config

    @property
    def context(self) -> int | None:
        """Tokens of context that generation keeps to; None where rotary positions stretch with the text.

        With limited memory it is no longer than there is room for.
        """
        own = None if self.config.rope.kind == "dynamic" else self.config.max_position_embeddings
        room = None if self._held is None else self._held.tokens
        return min((n for n in (own, room) if n is not None), default=None)

    @property
    def residency(self) -> Residency | None:
        """Which blocks stay in memory and which are read for every pass, as planned; None if nothing was planned."""
        return None if self._held is None else self._held.residency

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that were read for blocks that do not stay in memory, so far."""
        reader = None if self._held is None else self._held.reader
        return 0 if reader is None else reader.bytes_read

    @property
    def streams(self) -> bool:
        """Whether some blocks do not stay in memory."""
        return self.residency is not None and bool(self.residency.streamed)

    def close(self) -> None:
        """Stop reading ahead, where blocks are streamed; the model cannot be used any more."""
        if self._held is not None:
            self._held.close()

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
        cache = self.new_cache(2 * CHUNK)
        rules = sampling or Sampling()
        # All numbers of tokens beyond a few run the same kernels; what is left of a prompt may be a few.
        for count in {min(prompt, _SEVERAL), min((prompt - 1) % CHUNK + 1, _SEVERAL)}:
            x = decoder.hidden(np.zeros(count, np.int64), cache, CHUNK)
        sample(decoder.logits(x[-1:])[0], rules, rules.generator(), cache.scratch)
        cache.extend([0] * CHUNK)  # a context so long that attention divides it, of whatever the memory holds
        decoder.hidden(np.zeros(1, np.int64), cache, CHUNK)
        if threads() > 1:
            muster()  # work as small as this does not
        if self._work:
            note_run(self._work)

    def release(self) -> None:
        """Give back the memory of weights read so far; they are read again, from the page cache, when they are used."""
        if self._held is not None:
            self._held.mapped.release()

    def new_cache(self, capacity: int = CHUNK) -> KVCache:
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
        for start in range(0, ids.size, self._wave):
            x = self.decoder.hidden(ids[start : start + self._wave], cache, length, chunk=CHUNK)
            for first in range(0, len(x), CHUNK):
                part = slice(first, first + CHUNK)
                self.decoder.logits(x[part], out=logits[start : start + len(x)][part])
        return logits

    def logits_one_by_one(self, tokens: Sequence[int], cache: KVCache) -> np.ndarray:
        """Logits after each of a few tokens: the very same as if they had come one at a time, in one pass over weights.

        Returns
        -------
        float32 (n, vocab_size)
        """
        ids, cache = self._prepare(tokens, cache)
        x = self.decoder.hidden(ids, cache, cache.length + ids.size, chunk=1)
        return np.concatenate([self.decoder.logits(x[i : i + 1]) for i in range(len(x))])

    def last_logits(
        self, tokens: Sequence[int] | np.ndarray, cache: KVCache, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits after the last of some tokens, float32 (vocab_size,); the head runs once. See `__call__`."""
        ids, cache = self._prepare(tokens, cache)
        if not ids.size:
            raise UsageError("no tokens")
        length = cache.length + ids.size
        for start in range(0, ids.size, self._wave):
            x = self.decoder.hidden(ids[start : start + self._wave], cache, length, chunk=CHUNK)
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
        speculate: int | None = None,
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
        speculate : int, optional
            Tokens to guess at most, from what followed the last few tokens earlier in the text, and to check in one
            pass over the weights: the text is the same. Only without a temperature. By default 8 where blocks are
            streamed, and 0 otherwise, where a pass is no dearer than its tokens.

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
        if speculate is not None and speculate < 0:
            raise UsageError("speculate must not be negative", found=speculate)
        return Generation(
            self,
            check_ids(tokens, self.config.vocab_size).tolist(),
            max_tokens=max_tokens,
            sampling=sampling or Sampling(),
            stop_tokens=stops,
            cache=cache or self.new_cache(),
            speculate=(_GUESSES if self.streams else 0) if speculate is None else speculate,
        )

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 256,
        stop: Sequence[str] = (),
        speculate: int | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> TextStream:
        """Go on from a text.

        Parameters
        ----------
        prompt : str
        max_tokens : int or None
            At most so many new tokens; None means until the text ends or the context is full.
        stop : sequence of str
            Strings that end the text; they are not part of it.
        speculate : int, optional
            See `generate`.
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
        generation = self.generate(
            tokens, max_tokens=max_tokens, sampling=rules, stop_tokens=self.stop_tokens, speculate=speculate
        )
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
