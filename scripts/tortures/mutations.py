"""Changing JSON so that most of it stays what a parser expects: one field at a time, or a few bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from random import Random

__all__ = ["mutated"]

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 1 << 31, (1 << 31) - 1,
    1 << 32,
    (1 << 53) + 1, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 10**399, -(1 << 63), 0.0, 1.0, -0.5, 1e-300, 1e300, 64.0,
    "", "x", "64",
    "BF16", "F32", "I32", "I64", "U8", "I8", "F8_E4M3", "F4", "BOOL", "F64", "group", "channel", "int", "float",
    "pack-quantized",
    "compressed-tensors", "Linear", "re:.*", "re:(a+)+$", "re:(", "re:.*proj", "model.safetensors", "../x", "a/b",
    "\0", "\x1b[31m",
    "\ud800", "é", "llama", "qwen2", "qwen3_moe", "mixtral", "yarn", "llama3", "linear", "dynamic", "default",
    "0" * 64, [], {}, [0],
    [64], [0, 0], [0, 128], [[]], [{}], {"a": 1}, [1 << 32, 1 << 32], {"": None},
)  # fmt: skip
"""What may stand in any place."""

_FRAGMENTS: Final = (
    b"", b"-", b"0", b"1", b"9", b".", b"e3", b"E-5", b"[", b"]", b"{", b"}", b'"', b",", b":", b" ", b"\\", b"\0",
    b"\xff", b"null",
    b"true", b'"x"', b'"y":', b"\\u0078", b"\\ud800", b"18446744073709551616", b"\n", b"\t", b"\x0b", b"1e999", b"-0",
    b"NaN",
    b"Infinity", b"\xef\xbb\xbf", b"//", b"[[[[[[[[", b'"a":1,"a":2,', b"\xc3\xa9", b"\xed\xa0\x80", b"'",
)  # fmt: skip
_BYTEWISE: Final = 0.25
_DUPLICATED: Final = 0.05


def mutated(data: bytes, rng: Random) -> bytes:
    """Return another document: fields of JSON changed, or bytes of anything."""
    if rng.random() >= _BYTEWISE:
        try:
            value = json.loads(data)
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                value = _changed(value, rng)
            text = json.dumps(value, separators=rng.choice(((",", ":"), (", ", ": "))), ensure_ascii=rng.random() < 0.5)
            found = text.encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass
        else:
            return _duplicated(found, rng) if rng.random() < _DUPLICATED else found
    return _bytewise(data, rng)


def _changed(value: Any, rng: Random) -> Any:
    """Change one place of a document."""
    place = value
    path: list[tuple[Any, Any]] = []
    while isinstance(place, dict | list) and place and (not path or rng.random() < 0.8):
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        path.append((place, key))
        place = place[key]
    if not path:
        return rng.choice(_VALUES)
    holder, key = path[-1]
    _CHANGES[rng.randrange(len(_CHANGES))](holder, key, rng)
    return value


def _replace(holder: Any, key: Any, rng: Random) -> None:
    holder[key] = rng.choice(_VALUES)


def _nudge(holder: Any, key: Any, rng: Random) -> None:
    found = holder[key]
    if isinstance(found, int) and not isinstance(found, bool):
        holder[key] = found + rng.choice((-64, -8, -2, -1, 1, 2, 8, 64))
    elif isinstance(found, str):
        place = rng.randint(0, len(found))
        holder[key] = (
            found[:place] + rng.choice(("", ".", "/", "x", "0", "\u202e")) + found[place + rng.randint(0, 2) :]
        )
    else:
        _replace(holder, key, rng)


def _remove(holder: Any, key: Any, _: Random) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, rng: Random) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((f"{key}x", str(key)[:-1], "__metadata__", "shape", "weight_map", "", "x.weight_packed"))] = (
            holder.pop(key)
        )
    else:
        holder.insert(key, holder[key])


def _swap(holder: Any, key: Any, rng: Random) -> None:
    other = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    holder[key], holder[other] = holder[other], holder[key]


def _wrap(holder: Any, key: Any, rng: Random) -> None:
    holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, [holder[key], holder[key]]))


_CHANGES: Final = (_replace, _replace, _replace, _nudge, _nudge, _remove, _rename, _swap, _wrap)


def _duplicated(text: bytes, rng: Random) -> bytes:
    """Write a key twice, which no dictionary can."""
    quotes = [place for place in range(len(text)) if text[place : place + 1] == b'"']
    if len(quotes) < 2:
        return text
    start, end = sorted(rng.sample(quotes, 2))
    return text[:start] + text[start : end + 1] + b":1," + text[start:]


def _bytewise(data: bytes, rng: Random) -> bytes:
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.randint(0, 4))
        text[start:end] = rng.choice(_FRAGMENTS)
    return bytes(text)
