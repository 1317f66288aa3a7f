"""Sizes in bytes as people write and read them: `4GiB`, `500M`, `5GB`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from llmq.system.sizes import PREFIXES, format_size

if TYPE_CHECKING:
    from click import Context, Parameter

__all__ = ["SIZE", "SizeType", "format_size", "parse_size"]

_SIZE: Final = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?:(?P<prefix>[kmgtp])(?P<binary>i)?)?b?", re.IGNORECASE | re.ASCII
)


def parse_size(text: str) -> int:
    """Read a size: a number with `K`, `M`, `G`, `T` or `P` (powers of 1000) or `Ki`... (1024), and `B` or not.

    Raises
    ------
    ValueError
        Anything else, or less than a byte.

    >>> parse_size("4GiB"), parse_size("500M"), parse_size("1.5 kB"), parse_size("4096")
    (4294967296, 500000000, 1500, 4096)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 4GiB, 500M or 5GB")
    base = 1024 if found["binary"] else 1000
    power = PREFIXES.upper().index(found["prefix"].upper()) if found["prefix"] else 0
    whole, _, fraction = found["number"].partition(".")
    # Whole numbers, so that no byte of a large size is lost to rounding.
    size: int = int(whole + fraction) * base**power // 10 ** len(fraction)
    if size < 1:
        raise ValueError(f"{text!r} is less than a byte")
    return size


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """A click parameter of bytes."""

    name = "size"

    def convert(self, value: Any, param: Parameter | None, ctx: Context | None) -> int:
        """Read a value from the command line."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE: Final = SizeType()
"""To be given as `type=SIZE`."""
