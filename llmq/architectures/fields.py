"""Values of a stranger's `config.json`, read strictly: right type, sane size, or an InputError that names the key."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields", "MissingFieldError"]

_LARGEST: Final = 2**31 - 1
_REQUIRED: Final = object()


class MissingFieldError(InputError):
    """A key that a model needs is not there."""


class Fields:
    """Typed access to a mapping from JSON; a null counts as a key that is not there.

    Parameters
    ----------
    values : mapping
        `config.json`, or an object inside it.
    path : str
        Put before key names in messages, `"rope_parameters."` for one.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._values.get(key) is not None

    def size(self, key: str, default: Any = _REQUIRED, *, most: int = _LARGEST) -> int:
        """Read a positive integer of at most `most`."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self._error(key, f"an integer from 1 to {most}", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, above: float = 0.0) -> float:
        """Read a finite number greater than `above`."""
        value = self._value(key, default)
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        # A huge integer does not fit a float at all.
        if not sound or not above < value < 1e300 or not math.isfinite(value):
            raise self._error(key, f"a number greater than {above:g}", value)
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """Read a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._error(key, "true or false", value)
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """Read a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._error(key, "a string", value)
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is _REQUIRED:
            raise MissingFieldError(f"{self._path}{key} is missing", file="config.json")
        return value

    def _error(self, key: str, expected: str, found: Any) -> InputError:
        shown = repr(found)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return InputError(f"{self._path}{key} makes no sense", file="config.json", expected=expected, found=shown)
