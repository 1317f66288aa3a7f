"""Guesses at what comes next, from what came after the same few tokens before: no model, and often right.

The prompt look-up of Saxena (2023), as transformers and vLLM have it: texts that quote, list or rewrite repeat
themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lookup"]

_LONGEST: Final = 4
_SHORTEST: Final = 2


class Lookup:
    """Where each run of 2 to 4 tokens last stood in a growing text.

    Examples
    --------
    >>> lookup = Lookup()
    >>> lookup.guess([1, 2, 3, 4, 9, 1, 2], 3)
    [3, 4, 9]
    >>> lookup.guess([1, 2, 3, 4, 9, 1, 2, 7], 3)
    []
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """Tokens that followed the longest run that `text` ends in, where it stood last; none if it never did.

        Parameters
        ----------
        text : sequence of int
            What was given before, and more.
        most : int
            Tokens at most.
        """
        # A run is entered once a token follows it, so that the end of the text does not find itself.
        for end in range(max(1, self._known), len(text)):
            for length in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._after[tuple(text[end - length : end])] = end
        self._known = len(text)
        for length in range(min(_LONGEST, len(text)), _SHORTEST - 1, -1):
            place = self._after.get(tuple(text[len(text) - length :]))
            if place is not None:
                return list(text[place : place + most])
        return []
