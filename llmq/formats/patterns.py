"""Regular expressions by strangers: bounded, since some take longer than the universe has."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import regex

from llmq.errors import InputError

__all__ = ["Patterns"]

_LONGEST: Final = 1 << 16
"""Characters; those of a model with hundreds of layers, listed one by one, have a few thousand."""

_MOST: Final = 1000
_SECONDS: Final = 0.5
"""For all matches of a checkpoint together, beside the usual time of each; those of a real one take milliseconds."""

_EACH: Final = 1e-5

_REPEATS: Final = 100_000
"""Sum over all expressions of the product of the numbers in their counted repeats: 36 MB at the most."""

_COUNT: Final = re.compile(r"(?<=[{,])[^{},]*?(\d+)[^{},]*(?=[},])")


class Patterns:
    """Expressions that match names from their beginning, as `re.match` does, within a bound of time for all of them.

    Parameters
    ----------
    texts : iterable of str

    Raises
    ------
    InputError
        One that is malformed or too long, or too many.
    """

    def __init__(self, texts: list[str]) -> None:
        if len(texts) > _MOST:
            raise InputError("too many regexes", file="config.json", expected=f"at most {_MOST}", found=len(texts))
        # Repeats within repeats are written out when an expression is compiled: a line can take all memory.
        left = _REPEATS + len(texts)
        for text in texts:
            left -= _repeats(text[:_LONGEST])
            if left < 0:
                raise InputError("regexes that repeat too much", file="config.json", found=text[:80])
        self._compiled: dict[str, Any] = {text: _compiled(text) for text in texts}
        self._left = _SECONDS

    def match(self, text: str, name: str) -> bool:
        """Whether an expression matches a name; InputError once all of them have taken too long."""
        began = time.monotonic()
        self._left += _EACH
        try:
            found = self._compiled[text].match(name, timeout=max(self._left, 1e-3))
        except TimeoutError:
            self._left = 0.0
        else:
            self._left -= time.monotonic() - began
        if self._left <= 0:
            raise InputError("this regex takes too long", file="config.json", found=text[:80])
        return found is not None


def _repeats(text: str) -> int:
    """Product of the numbers in the counted repeats of an expression, 1 without any."""
    times = 1
    for number in _COUNT.findall(text):
        times *= max(1, int(number[:9]))
        if times > _REPEATS:
            break
    return times


def _compiled(text: str) -> Any:
    if len(text) > _LONGEST:
        raise InputError("too long a regex", file="config.json", found=f"{text[:40]}...")
    try:
        return regex.compile(text)
    except (regex.error, RecursionError, OverflowError, ValueError, MemoryError, IndexError):
        raise InputError("malformed regex", file="config.json", found=text[:80]) from None
