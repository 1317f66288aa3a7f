"""JSON without its ambiguities: what two parsers could read differently is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from llmq.errors import InputError

__all__ = ["check_extent", "dumps", "loads", "without_infinity"]

_MOST_CONTAINERS: Final = 600_000
_MOST_VALUES: Final = 5_000_000
_DEEPEST: Final = 100
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes, file: object) -> Any:
    """Parse UTF-8 JSON.

    Parameters
    ----------
    data : bytes
        The whole document.
    file : object
        Named in errors.

    Raises
    ------
    InputError
        Not UTF-8, not JSON, duplicate keys, NaN or infinity, numbers out of range, nesting too deep, half a
        surrogate pair; or more of it than `check_extent` lets pass.
    """
    check_extent(data, file)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text at byte {error.start}", file=file) from None
    except UnicodeEncodeError:
        raise InputError("not valid JSON: half a surrogate pair", file=file) from None
    except RecursionError:
        raise InputError("not valid JSON: nested too deeply", file=file) from None
    except ValueError as error:
        raise InputError(f"not valid JSON: {error}", file=file) from None
    if _depth(value) > _DEEPEST:
        raise InputError("not valid JSON: nested too deeply", file=file)
    return value


def check_extent(data: bytes, file: object, *, containers: int = _MOST_CONTAINERS) -> None:
    """Refuse JSON that would take a gigabyte of memory, or minutes: two characters can make a list of 64 bytes.

    Parameters
    ----------
    data : bytes
        Brackets and commas in strings are counted too.
    file : object
        Named in the error.
    containers : int
        Lists and objects at most; those of a header with 200,000 tensors by default.

    Raises
    ------
    InputError
        More of them, or more than five million values.
    """
    if data.count(b"[") + data.count(b"{") > containers or data.count(b",") > _MOST_VALUES:
        expected = f"at most {containers:,} lists and objects, and {_MOST_VALUES:,} values"
        raise InputError("too much JSON", file=file, expected=expected)


def _depth(value: Any) -> int:
    """Depth of nesting, found level by level: whoever walks the value later may do so by recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    return depth


def dumps(value: object) -> bytes:
    """Encode for people: indented UTF-8 with a newline at the end, keys in the order given; no NaN."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def without_infinity(value: Any) -> Any:
    """Return a JSON-like value with None for infinities and NaN, which JSON does not have.

    >>> without_infinity({"sqnr_db": [float("inf"), 1.5]})
    {'sqnr_db': [None, 1.5]}
    """
    if isinstance(value, dict):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key[:100]!r}")
            seen.add(key)
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _integer(text: str) -> int | float:
    if len(text) > 400:
        raise ValueError("an integer is out of range")
    # Other parsers read -0 as a float.
    return -0.0 if text == "-0" else int(text)
