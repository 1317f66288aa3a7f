"""How much a weight's error is taken to matter where no text tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llmq.architectures.roles import layer_index

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["FIRST_MLP", "LAST_BLOCK", "PATTERN", "priors"]

PATTERN: Final = 0.5
"""Of queries and keys: they only decide where values come from."""

FIRST_MLP: Final = 4.0
"""Of the first block's MLP: what it adds outweighs the embeddings, so that its error is one of the whole stream."""

LAST_BLOCK: Final = 2.0
"""Of the last block: nothing after it dilutes its error."""

_QUERIES_OR_KEYS: Final = re.compile(r"\.[qk]_proj\.weight$")
_ATTENTION: Final = re.compile(r"attn|attention")


def priors(names: Collection[str]) -> dict[str, float]:
    """Prior weight of the relative error of each tensor, by name; 1 for what nothing is said of.

    A relative error of any weight of a branch is about the same relative error of what the branch adds to the residual
    stream, whatever the size of the weight.

    >>> priors(["model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"])
    {'model.layers.0.mlp.up_proj.weight': 8.0, 'model.layers.0.self_attn.q_proj.weight': 1.0, 'lm_head.weight': 1.0}
    """
    last = max((layer for layer in map(layer_index, names) if layer is not None), default=-1)
    return {name: _prior(name, last) for name in names}


def _prior(name: str, last: int) -> float:
    layer, prior = layer_index(name), 1.0
    if _QUERIES_OR_KEYS.search(name):
        prior *= PATTERN
    if layer == 0 and not _ATTENTION.search(name):
        prior *= FIRST_MLP
    if layer is not None and layer == last:
        prior *= LAST_BLOCK
    return prior
