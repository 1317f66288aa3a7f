"""`Experts`: a mixture of experts in place of a block's MLP, and how the families that have one spell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures.fields import Fields
from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Experts", "mixtral_experts", "qwen_experts"]

_MOST: Final = 4096


@dataclass(frozen=True)
class Experts:
    """MLPs of which a router chooses a few for each token.

    Parameters
    ----------
    count, used : int
        How many there are, and how many a token meets.
    intermediate_size : int
        Of each.
    shared_size : int or None
        `intermediate_size` of an MLP that every token meets beside them, through a gate of its own.
    normalized : bool
        Whether the shares of the experts that a token meets are made to add up to one.
    layers : tuple of bool
        Whether a block has experts; the others have the usual MLP.
    module : str
        What stands for `mlp` in the names of tensors.
    linears : (str, str, str)
        What stands for `gate_proj`, `up_proj` and `down_proj`.
    """

    count: int
    used: int
    intermediate_size: int
    shared_size: int | None
    normalized: bool
    layers: tuple[bool, ...]
    module: str = "mlp"
    linears: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


def mixtral_experts(config: Mapping[str, Any], layers: int) -> Experts:
    """Read a Mixtral's: every block has some, and their shares add up to one."""
    fields = Fields(config)
    count, used = _numbers(fields, "num_local_experts", 8, 2)
    return Experts(
        count, used, fields.size("intermediate_size"), None, True, (True,) * layers,
        module="block_sparse_moe", linears=("w1", "w3", "w2"),
    )  # fmt: skip


def qwen_experts(config: Mapping[str, Any], layers: int, defaults: tuple[int, int, int], shared: int | None) -> Experts:
    """Read a Qwen's.

    Parameters
    ----------
    config : mapping
        `config.json`.
    layers : int
    defaults : (int, int, int)
        Number of experts, how many are used, and their `intermediate_size`, where the file is silent.
    shared : int or None
        `intermediate_size` of the shared expert where the file is silent; None for a family without one.

    Raises
    ------
    InputError
        A value that makes no sense.
    """
    fields = Fields(config)
    # transformers 5 saves a Qwen 3's number under Mixtral's key.
    key = "num_local_experts" if fields.has("num_local_experts") and not fields.has("num_experts") else "num_experts"
    count, used = _numbers(fields, key, defaults[0], defaults[1])
    step, dense = fields.size("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise InputError("mlp_only_layers makes no sense", file="config.json", found=repr(dense)[:60])
    return Experts(
        count=count,
        used=used,
        intermediate_size=fields.size("moe_intermediate_size", defaults[2]),
        shared_size=None if shared is None else fields.size("shared_expert_intermediate_size", shared),
        normalized=fields.flag("norm_topk_prob", False),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers)),
    )


def _numbers(fields: Fields, key: str, count: int, used: int) -> tuple[int, int]:
    count = fields.size(key, count, most=_MOST)
    used = fields.size("num_experts_per_tok", used)
    if used > count:
        raise InputError(
            "num_experts_per_tok makes no sense", file="config.json", expected=f"at most {count}", found=used
        )
    return count, used
