"""From the flags of `llmq quantize` to a `Recipe`: one signature for the shell and for Python."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

from llmq.errors import UsageError
from llmq.plan.choose import AUTO
from llmq.plan.targets import TARGETS, Target
from llmq.spec import Goal, Override, QuantSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["make_recipe", "parse_override"]

_KEYS: Final = {"bits": "bits", "group": "group_size", "group_size": "group_size", "symmetric": "symmetric"}
_FLAGS: Final = {"true": 1, "false": 0, "yes": 1, "no": 0}


def make_recipe(
    *,
    bits: int | None = None,
    group_size: int | None = None,
    symmetric: bool = True,
    range: str = "full",  # noqa: A002  (the flag's name)
    method: str = "mse",
    lm_head: int | str | None = None,
    embeddings: int | str = "keep",
    ignore: Sequence[str] = (),
    overrides: Sequence[str | Override] = (),
    target: str = "llmq",
    goal: Goal | None = None,
) -> Recipe:
    """Check the flags and fill in what `target`, and `goal` from `make_goal`, suggest where the user said nothing.

    Raises
    ------
    UsageError
        Naming the flag, what was expected and what was found.
    """
    if target not in TARGETS:
        raise UsageError("unknown reader for --for", expected="/".join(TARGETS), found=target)
    defaults = TARGETS[target]
    if goal is not None and bits is not None:
        raise UsageError("--bits fixes what a target size or width is to choose", hint="leave --bits out")
    try:
        spec = QuantSpec(
            bits=4 if bits is None else bits,
            group_size=defaults.group_size if group_size is None else group_size,
            symmetric=symmetric,
            range=range,  # type: ignore[arg-type]  # checked there
            signed_scale=defaults.negative_scales and method != "rtn" and range == "full",
        )
        parsed = tuple(o if isinstance(o, Override) else parse_override(o) for o in overrides)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for pattern in (*ignore, *(o.pattern for o in parsed)):
        _check_pattern(pattern)
    return Recipe(
        spec=spec,
        method=method,
        lm_head=_default_head(spec, defaults) if lm_head is None else _kept_or_bits("--lm-head", lm_head, goal),
        embeddings=_kept_or_bits("--embeddings", embeddings, goal),
        ignore=tuple(ignore),
        overrides=parsed,
        target=target,  # type: ignore[arg-type]  # checked above
        goal=goal,
    )


def _default_head(spec: QuantSpec, target: Target) -> int | None:
    """Bits of the head; transformers reads asymmetric checkpoints only if one scheme serves them all."""
    return target.lm_head if spec.symmetric or spec.bits == target.lm_head else None


def parse_override(text: str) -> Override:
    """Parse `REGEX=bits:8,group:32` (also `symmetric:false`); the last `=` divides.

    Raises
    ------
    UsageError
        The text has another shape.
    """
    pattern, divider, settings = text.rpartition("=")
    fields: dict[str, Any] = {}
    for setting in settings.split(","):
        key, _, value = (part.strip() for part in setting.partition(":"))
        number = _FLAGS.get(value.lower(), None) if key == "symmetric" else _whole(value)
        if not divider or key not in _KEYS or number is None:
            raise UsageError("--set not understood", expected="REGEX=bits:8,group:32", found=text)
        fields[_KEYS[key]] = bool(number) if key == "symmetric" else number
    bits, group_size = fields.get("bits"), fields.get("group_size")
    QuantSpec(bits=4 if bits is None else bits, group_size=64 if group_size is None else group_size)
    return Override(pattern, **fields)


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def _kept_or_bits(flag: str, value: int | str, goal: Goal | None) -> int | Literal["auto"] | None:
    if value == "keep":
        return None
    if value == AUTO:
        if goal is None:
            raise UsageError(f"{flag} auto needs something to keep to", hint="--target-size, --target-bpw or --ram")
        return "auto"
    bits = _whole(str(value))
    if bits is None or not 1 <= bits <= 8:
        raise UsageError(f"{flag} not understood", expected="keep, auto, or bits from 1 to 8", found=value)
    return bits


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"not a regular expression: {pattern}", found=error) from None
