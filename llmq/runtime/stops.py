"""When to stop: the ids that end a text, and strings that do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["StopStrings", "stop_tokens"]

_GENERATION_CONFIG: Final = "generation_config.json"


def stop_tokens(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that end a text, by `generation_config.json` and `config.json`: an id, or a list of them, in either.

    Raises
    ------
    InputError
        A malformed file or value.
    """
    found = _ids(config.get("eos_token_id"), "config.json")
    if os.path.lexists(folder / _GENERATION_CONFIG):
        data = json_strict.loads(read_small(folder / _GENERATION_CONFIG, allowed_roots(folder)), _GENERATION_CONFIG)
        if not isinstance(data, dict):
            raise InputError("not a JSON object", file=_GENERATION_CONFIG)
        found |= _ids(data.get("eos_token_id"), _GENERATION_CONFIG)
    return found


def _ids(value: Any, file: str) -> frozenset[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is int for item in ids):
        raise InputError("eos_token_id must be an integer or a list of them", file=file, found=repr(value)[:60])
    return frozenset(ids)


class StopStrings:
    """Cuts a stream of text at the first of some strings.

    Parameters
    ----------
    strings : sequence of str
        Empty ones are left out.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.hit = False
        """Whether one of the strings came."""

    def add(self, piece: str) -> str:
        """Take a piece of text and return what is safe to show: nothing that may be the beginning of a stop string."""
        text = self._held + piece
        places = [at for at in (text.find(string) for string in self._strings) if at >= 0]
        if places:
            self.hit, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    r"""Length of the longest end of `text` that `string` begins with.

    >>> _overlap("one two\nUs", "\nUser:")
    3
    """
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
