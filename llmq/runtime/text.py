"""Text to tokens and back, by the tokenizer of transformers; imported only when text is needed."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.errors import InputError, LlmqError, UnsupportedError, UsageError, first_line
from llmq.runtime.chat_template import render
from llmq.runtime.tokenizer_files import probed, taken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Detokenizer", "check_ids", "encode", "encode_chat", "load_tokenizer", "tokens_of"]

_QUIET: Final = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint's tokenizer from its folder, never from elsewhere, and without running any code of it.

    Raises
    ------
    InputError
        There is none, or it is broken.
    ResourceError
        There is no room for a copy of its files.
    """
    names = {path.name for path in folder.iterdir()}
    if not names.intersection(_TOKENIZERS) and not any(name.endswith((".tiktoken", ".model")) for name in names):
        hint = "copy tokenizer.json and tokenizer_config.json of the original model into the folder"
        raise InputError("no tokenizer", file=folder, hint=hint)
    with taken(folder) as place, probed(place / "tokenizer.json") as check:
        transformers = _import_transformers()
        check()
        with _quiet(), _blamed("be loaded", folder, place):
            found = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    found.name_or_path = str(folder)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from saying what it thinks of the files: it says it in their words."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _blamed(what: str, folder: Path | None = None, place: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises over a stranger's tokenizer into InputError; a panic in Rust is no Exception."""
    try:
        yield
    except (LlmqError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = first_line(error)
        if place is not None:
            why = why.replace(str(place), str(folder))
        raise InputError(f"the tokenizer cannot {what}: {why[:200]}", file=folder) from error


def _import_transformers() -> Any:
    """Import transformers without its notice that PyTorch is missing, which is how llmq wants it."""
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before
    return transformers


def check_ids(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Token ids that a model of `vocab_size` tokens has, int64 (n,).

    Raises
    ------
    UsageError
        Not a list of integers.
    InputError
        A token that the model has not.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise UsageError("tokens must be a list of integers", found=f"{ids.dtype} of shape {ids.shape}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise InputError("no such token", expected=f"0 to {vocab_size - 1}", found=wrong)
    return ids.astype(np.int64)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a prompt, with those that the tokenizer puts before a text; an empty one is at least those.

    Raises
    ------
    UsageError
        A prompt that is not Unicode text, or an empty one and a tokenizer without a token to begin a text with.
    """
    tokens = tokens_of(tokenizer, text)
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = [tokenizer.bos_token_id]
    if not tokens:
        raise UsageError("the prompt is empty, and this model needs at least one token")
    return tokens


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Tokens of a conversation up to where the assistant begins to speak.

    A model without a chat template was not trained to converse: the messages are joined, each on a line of its own,
    for it to go on from.

    Raises
    ------
    UsageError
        The text is not UTF-8.
    UnsupportedError
        The template cannot be rendered.
    """
    if not getattr(tokenizer, "chat_template", None):
        return encode(tokenizer, "\n".join(message["content"] for message in messages))
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several of them, and none by default
        raise UnsupportedError(f"no chat template: {first_line(error)[:200]}") from error
    if not isinstance(template, str):
        raise UnsupportedError("the chat template is no text", found=type(template).__name__)
    given = dict(tokenizer.special_tokens_map) | {"add_generation_prompt": True}
    return tokens_of(tokenizer, render(template, messages, given), add_special_tokens=False)


def tokens_of(tokenizer: Any, text: str, **how: bool) -> list[int]:
    """Tokens of a text as a tokenizer makes them, none added but those that it adds by itself.

    Raises
    ------
    UsageError
        Not Unicode text.
    InputError
        The tokenizer fails on it.
    """
    # Bytes that are not UTF-8 reach us from the shell as halves of surrogate pairs.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("the text is not UTF-8")
    # Not verbose: how long a text may be is the model's affair, which the tokenizer's advice does not know.
    with _blamed("make tokens of this text"):
        return list(tokenizer(text, verbose=False, **how)["input_ids"])


class Detokenizer:
    """Turns a stream of tokens into pieces of text that add up to the text of all of them.

    A token may hold a part of a character, or begin with a space that it loses at the beginning of a text. So the
    tokens of the piece before are decoded with it, and a piece is held back until its last character is whole.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    prompt : sequence of int
        Tokens before the stream; their text is not repeated.
    """

    _LONGEST: Final = 8  # tokens held back; no character has more than 4 bytes

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._known = list(prompt)
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """Take a token and return the text that is certain now; often none."""
        self._new.append(token)
        before, text = self._texts()
        if text.endswith("\ufffd") and len(self._new) < self._LONGEST:
            return ""
        piece = text[len(before) :]
        # Tokens without text say nothing of what a piece begins with.
        self._known, self._new = (self._new if piece else [*self._known, *self._new]), []
        return piece

    def rest(self) -> str:
        """Return the text held back, at the end of the stream; a character that never became whole is left out."""
        before, text = self._texts()
        self._new = []
        return text[len(before) :].rstrip("\ufffd")

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._known), self._decode([*self._known, *self._new])

    def _decode(self, tokens: Sequence[int]) -> str:
        with _blamed("make text of these tokens"):
            found: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found
