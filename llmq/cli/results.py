"""Results of earlier commands, read back from the files that they were kept in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_evaluations"]

_LARGEST: Final = 64 << 20
_NAMES: Final = ("model", "base", "compute")


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """Read what `llmq eval --json` printed, or a list of such objects under `evaluations`; numbers and names only.

    Raises
    ------
    InputError
        Another file.
    """
    with path.open("rb") as file:
        raw = file.read(_LARGEST)
    found = json_strict.loads(raw, str(path))
    listed = found.get("evaluations", [found]) if isinstance(found, dict) else None
    if not isinstance(listed, list) or not listed:
        raise _unlike(path)
    return [_evaluation(path, item) for item in listed]


def _evaluation(path: Path, item: Any) -> dict[str, Any]:
    numbers = ("perplexity", "bits_per_weight")
    if not isinstance(item, dict) or not all(_is_number(item.get(key)) for key in numbers):
        raise _unlike(path)
    plain = {k: v for k, v in item.items() if _is_number(v) or (k in _NAMES and isinstance(v, str))}
    return {"model": str(path)} | plain


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unlike(path: Path) -> InputError:
    return InputError("not a result of `llmq eval --json`: no perplexity and bits_per_weight", file=path)
