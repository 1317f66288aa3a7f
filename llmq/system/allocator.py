"""The C library's allocator, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["keeping_freed"]

_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3
"""Of `mallopt`, in <malloc.h> of glibc."""

_LARGEST: Final = 32 << 20
"""Blocks that are kept: of larger ones a page costs little beside what is computed with it."""

_USUAL: Final = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20}
"""What glibc arrives at by itself in a program that frees large blocks."""


@contextmanager
def keeping_freed() -> Iterator[None]:
    """Keep freed memory for what is allocated next, and give it back at the end; nothing happens without glibc.

    Large blocks otherwise go back to the system each time, and every page of the next one is a fault: a program that
    allocates arrays all the time spends most of its time there.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    for parameter, value in ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)
