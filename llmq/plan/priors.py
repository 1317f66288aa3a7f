"""How much a weight's error is taken to matter where no text tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PRIORS", "priors"]

PRIORS: Final[dict[str, float]] = {
    "q_proj": 0.5,
    "k_proj": 0.5,
    "v_proj": 1.0,
    "o_proj": 1.0,
    "gate_proj": 1.0,
    "up_proj": 1.0,
    "down_proj": 1.0,
    "lm_head": 1.0,
    "embed_tokens": 1.0,
}
"""By module; 1 for others. Queries and keys only decide where values come from. A relative error of any weight of a
branch is about the same relative error of what the branch adds to the residual stream, whatever the weight's size."""

_DEPTH: Final = 2.0
"""The first block adds as much as there is; what later ones add is a smaller part of a stream that has grown."""

_LAYER: Final = re.compile(r"(?:^|\.)\d+\.")


def priors(names: Iterable[str]) -> dict[str, float]:
    """Prior weight by tensor name."""
    return {name: PRIORS.get(name.removesuffix(".weight").rsplit(".", 1)[-1], 1.0) for name in names}
