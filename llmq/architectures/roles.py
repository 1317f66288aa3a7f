"""What each tensor of a checkpoint is, and whether it is known to be a linear that may be quantized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Role", "TensorRole", "is_transposed_family", "layer_index", "roles"]


class Role(StrEnum):
    """What a tensor does in a model."""

    LINEAR = "linear"
    HEAD = "head"
    EMBEDDING = "embedding"
    OTHER = "other"


@dataclass(frozen=True)
class TensorRole:
    """The role of a tensor and, for `Role.OTHER`, why it is kept as it is."""

    role: Role
    reason: str = ""


MIN_ELEMENTS: Final = 4096
"""Smaller tensors cost nothing and are kept."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_TOWER = re.compile(r"(?:^|\.)(?:vision|visual|audio|speech|image|multi_modal|mm_|patch_embed)[a-z_]*\.")
_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate|wg)(?:\.[a-z_]+)?\.weight$|router")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")
_NORM = re.compile(r"(?:^|[._])(?:norm|ln|layernorm|rmsnorm)[a-z0-9_]*\.", re.IGNORECASE)
_PROJECTION = re.compile(
    r"\.(?:(?:[qkvo]|qkv|out|gate|up|down|gate_up)_proj|(?:fc|w)[123]|dense|dense_h_to_4h|dense_4h_to_h|query_key_value"
    r"|o_proj|c_fc|fc_in|fc_out)\.weight$"
)
# These families keep their weights as (in_features, out_features).
_TRANSPOSED: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})


def is_transposed_family(config: Mapping[str, Any]) -> bool:
    """Whether the model stores linears transposed, as GPT-2's `Conv1D` does."""
    return config.get("model_type") in _TRANSPOSED


def layer_index(name: str) -> int | None:
    """Number of the decoder block a tensor belongs to, or None."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def roles(
    shapes: Mapping[str, tuple[int, ...]], *, linears: Collection[str] | None, known_family: bool
) -> dict[str, TensorRole]:
    """Tell the role of every tensor by its name and shape.

    Parameters
    ----------
    shapes : mapping
        Shape by tensor name.
    linears : collection of str or None
        Module names known to be `nn.Linear`, for an architecture that was instantiated; None when it was not.
    known_family : bool
        Whether llmq knows the architecture, so that projection names alone decide.
    """
    return {name: _role(name, shape, linears, known_family) for name, shape in shapes.items()}


def _role(name: str, shape: tuple[int, ...], linears: Collection[str] | None, known_family: bool) -> TensorRole:
    if len(shape) == 2 and prod(shape) >= MIN_ELEMENTS and not _TOWER.search(name):
        if _EMBEDDING.search(name):
            return TensorRole(Role.EMBEDDING)
        if _HEAD.search(name):
            return TensorRole(Role.HEAD)
    reason = _keep_reason(name, shape)
    if not reason and not known_family:
        reason = _unknown_reason(name, linears)
    elif not reason and not (_PROJECTION.search(name) and layer_index(name) is not None):
        reason = "not a linear of a decoder block"
    return TensorRole(Role.OTHER, reason) if reason else TensorRole(Role.LINEAR)


def _keep_reason(name: str, shape: tuple[int, ...]) -> str:
    rules = (
        (_TOWER.search(name), "vision or audio tower"),
        (name.endswith(".bias"), "bias"),
        (_NORM.search(name), "norm"),
        (_ROUTER.search(name), "router or shared-expert gate"),
        (len(shape) != 2, f"{len(shape)}-D"),
        (not name.endswith(".weight"), "not a weight"),
        (prod(shape) < MIN_ELEMENTS, f"fewer than {MIN_ELEMENTS} elements"),
    )
    return next((reason for hit, reason in rules if hit), "")


def _unknown_reason(name: str, linears: Collection[str] | None) -> str:
    module = name.removesuffix(".weight")
    if linears is not None:
        return "" if module in linears else "not an nn.Linear of this architecture"
    if _PROJECTION.search(name) and layer_index(name) is not None and ".experts." not in name:
        return ""
    return "not known to be an nn.Linear (architecture unknown here and to transformers)"
