"""What a file that is no safetensors file seems to be, in words."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["Guess", "guess_content", "size_text"]

_AGAIN: Final = "download it again"


class Guess(NamedTuple):
    """What a file seems to be, and what to do about it."""

    what: str
    hint: str


_STARTS: Final = (
    (b"version https://git-lfs", Guess("it is a Git LFS pointer, not the file itself", "run `git lfs pull`")),
    (b"PK\x03\x04", Guess("it is a zip archive or a PyTorch pickle", "convert it to safetensors")),
    (b"\x1f\x8b", Guess("it is compressed with gzip", "unpack it")),
    (b"GGUF", Guess("it is a GGUF file", "use the original checkpoint in safetensors")),
    (b"\x80\x02", Guess("it is a Python pickle", "convert it to safetensors")),
    (b"\x93NUMPY", Guess("it is a NumPy array", "convert it to safetensors")),
)


def guess_content(start: bytes) -> Guess | None:
    """Guess from the first bytes of a file; None where it may be safetensors.

    No guess can be wrong about a sound file: each of these starts, read as the length of a header, is either past
    the limit or not followed by ``{``.
    """
    if start[8:9] == b"{":
        return None
    for magic, guess in _STARTS:
        if start.startswith(magic):
            return guess
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return Guess("it is a web page, perhaps an error message", _AGAIN)
    if text.startswith(b"{"):
        return Guess("it is JSON", _AGAIN)
    if len(start) > 8 and not any(start):
        return Guess("it starts with zeros, as a broken download does", _AGAIN)
    return None


def size_text(present: int, expected: int) -> str:
    """`present` of `expected` bytes in a unit that suits both, as in ``4.07 of 4.97 GB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if expected >= unit and f"{present / unit:.2f}" != f"{expected / unit:.2f}":
            return f"{present / unit:.2f} of {expected / unit:.2f} {name}"
    return f"{present} of {expected} bytes"
