"""Colours that grow lighter evenly and that the colour-blind tell apart, and the ink to write on them."""

from __future__ import annotations

from typing import Final

__all__ = ["STOPS", "colour", "contrast", "ink"]

STOPS: Final = (
    (0, 34, 78),
    (8, 51, 112),
    (53, 69, 108),
    (79, 87, 108),
    (102, 105, 112),
    (125, 124, 120),
    (148, 142, 119),
    (174, 163, 113),
    (200, 184, 102),
    (229, 207, 82),
    (254, 232, 56),
)
"""Every tenth of cividis (Nunez, Anderton and Renslow, 2018, PLOS ONE 13(7))."""

_BLACK: Final = (0, 0, 0)
_WHITE: Final = (255, 255, 255)


def _mixed(share: float) -> tuple[int, ...]:
    place = min(1.0, max(0.0, share)) * (len(STOPS) - 1)
    left = min(int(place), len(STOPS) - 2)
    part = place - left
    return tuple(round(a + part * (b - a)) for a, b in zip(STOPS[left], STOPS[left + 1], strict=True))


def colour(share: float) -> str:
    """Colour of a number from 0 (dark blue) to 1 (yellow), cut off there.

    >>> colour(0.0), colour(0.5), colour(7.0)
    ('#00224e', '#7d7c78', '#fee838')
    """
    return "#" + "".join(f"{part:02x}" for part in _mixed(share))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Contrast of two colours, 1 to 21, as WCAG 2.2 defines it.

    >>> contrast((0, 0, 0), (255, 255, 255))
    21.0
    """
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(rgb: tuple[int, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ink(share: float) -> str:
    """Black or white, whichever is easier to read on `colour(share)`.

    >>> ink(0.0), ink(1.0)
    ('#ffffff', '#000000')
    """
    ground = _mixed(share)
    return "#ffffff" if contrast(ground, _WHITE) > contrast(ground, _BLACK) else "#000000"
