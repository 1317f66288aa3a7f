"""Sizes in bytes as people read them."""

from __future__ import annotations

from typing import Final

__all__ = ["PREFIXES", "format_size"]

PREFIXES: Final = " kMGTP"
"""Of powers of 1000, or of 1024 with an `i` behind."""


def format_size(nbytes: float) -> str:
    """Write a size with three digits, in powers of 1000.

    >>> format_size(999), format_size(13638144), format_size(4_000_000_000)
    ('999 B', '13.6 MB', '4.00 GB')
    """
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    value, power = float(nbytes), 0
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value, power = value / 1000, power + 1
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {PREFIXES[power]}B"
