"""`Rope`: how positions rotate queries and keys, read from either spelling of `config.json`."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from llmq.architectures.fields import Fields
from llmq.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rope", "rope"]

_log = logging.getLogger("llmq")

Kind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class Rope:
    """Rotary positions: pair `i` of a head turns by `position * theta ** (-2i / head_dim)`, scaled as `kind` says.

    Parameters
    ----------
    theta : float
        Base of the wavelengths.
    kind : {"default", "linear", "dynamic", "llama3", "yarn"}
        `linear` divides every frequency by `factor`; `dynamic` raises `theta` once a text is longer than
        `original_max_position`; `llama3` and `yarn` divide low frequencies only.
    factor : float
        How many times the original context is stretched.
    original_max_position : int
        Context before the stretching; for `dynamic`, the model's `max_position_embeddings`.
    attention_factor : float
        Multiplies sines and cosines (yarn).
    low_freq_factor, high_freq_factor : float
        llama3: wavelengths longer than the original context over the first are stretched, shorter than over the
        second kept, between them blended.
    beta_fast, beta_slow : float
        yarn: rotations within the original context above which a pair is kept, below which it is stretched.
    truncate : bool
        yarn: whether the two bounds are rounded outwards to whole pairs.
    """

    theta: float = 10000.0
    kind: Kind = "default"
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


_KEYS: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
}
_ALWAYS: Final = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
)


def rope(config: Mapping[str, Any], max_position: int) -> Rope:
    """Read `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (transformers 4).

    Parameters
    ----------
    config : mapping
        `config.json`.
    max_position : int
        `max_position_embeddings` of the model.

    Raises
    ------
    UnsupportedError
        A kind other than those of `Rope`, rotation of a part of the head, or rotation that differs by layer.
    InputError
        A value missing or absurd.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    values = config.get(name) or {}
    if not isinstance(values, dict):
        raise InputError(f"{name} makes no sense", file="config.json", expected="an object", found=repr(values)[:60])
    outer, inner = Fields(config), Fields(values, f"{name}.")
    theta = inner.number("rope_theta", None) if inner.has("rope_theta") else outer.number("rope_theta", 10000.0)
    kind = inner.text("rope_type", None) if inner.has("rope_type") else inner.text("type", "default")
    _refuse(values, name, kind)
    if kind == "linear":
        return Rope(theta, "linear", inner.number("factor"))
    if kind == "dynamic":
        return Rope(theta, "dynamic", inner.number("factor"), max_position)
    # A value beside the rope object wins over the one in it, as in transformers.
    home = outer if outer.has("original_max_position_embeddings") else inner
    original = home.size("original_max_position_embeddings", max_position)
    if kind == "llama3":
        return _llama3(theta, original, inner)
    if kind == "yarn":
        return _yarn(theta, original, inner, max_position)
    return Rope(theta)


def _refuse(values: Mapping[str, Any], name: str, kind: str) -> None:
    nested = [key for key, value in values.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedError(f"{name} that differ by layer ({', '.join(nested)})", file="config.json")
    if kind not in _KEYS:
        raise UnsupportedError(f"rope type {kind!r}", file="config.json", expected=f"one of {', '.join(_KEYS)}")
    if values.get("mrope_section") is not None:
        raise UnsupportedError(f"{name}.mrope_section: multimodal rotary positions", file="config.json")
    if values.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise UnsupportedError(f"{name}.partial_rotary_factor: rotation of a part of the head", file="config.json")
    unknown = sorted(key for key in values if key not in _ALWAYS | _KEYS[kind] and values[key] is not None)
    if unknown:
        _log.warning("config.json: %s: not used with rope type %s: %s", name, kind, ", ".join(unknown))


def _llama3(theta: float, original: int, values: Fields) -> Rope:
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    if not low < high:
        raise InputError(
            "low_freq_factor must be below high_freq_factor", file="config.json", found=f"{low} and {high}"
        )
    return Rope(theta, "llama3", values.number("factor"), original, low_freq_factor=low, high_freq_factor=high)


def _yarn(theta: float, original: int, values: Fields, max_position: int) -> Rope:
    if theta <= 1.0:
        raise InputError("yarn needs rope_theta above 1", file="config.json", found=theta)
    factor = values.number("factor", max_position / original)
    if values.has("attention_factor"):
        attention = values.number("attention_factor")
    elif values.has("mscale") and values.has("mscale_all_dim"):
        # Zero counts as not given.
        over, under = values.number("mscale", above=-1.0), values.number("mscale_all_dim", above=-1.0)
        attention = _mscale(factor, over) / _mscale(factor, under) if over and under else _mscale(factor, 1.0)
    else:
        attention = _mscale(factor, 1.0)
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        attention,
        beta_fast=values.number("beta_fast", 32.0, above=-1.0) or 32.0,
        beta_slow=values.number("beta_slow", 1.0, above=-1.0) or 1.0,
        truncate=values.flag("truncate", True),
    )


def _mscale(factor: float, mscale: float) -> float:
    """Attention temperature of "YaRN: Efficient Context Window Extension", section 3.4, times `mscale`."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0
