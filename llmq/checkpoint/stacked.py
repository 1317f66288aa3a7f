"""Experts that are stored stacked, three-dimensional, seen as the matrices that they are made of.

transformers keeps the experts of a block in two tensors, and saves them so where it is asked to::

    mlp.experts.gate_up_proj    (experts, 2 * intermediate, hidden)    gate above up
    mlp.experts.down_proj       (experts, hidden, intermediate)

Each expert's part is contiguous, so that a name, a shape and an offset are all it takes to read it alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.header import TensorInfo
from llmq.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["per_expert"]


@dataclass(frozen=True)
class _Names:
    """How a family calls the parts: its module in place of ``mlp``, and the gate, up and down of an expert."""

    module: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


_FAMILIES: Final = {
    "mixtral": _Names("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": _Names(),
    "qwen3_moe": _Names(),
}
_STACKED: Final = re.compile(r"(.*\.)mlp\.experts\.(gate_up_proj|down_proj)")
_ROUTER: Final = re.compile(r"(.*\.)mlp\.gate\.weight")


def per_expert(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Mapping[str, TensorInfo]:
    """Tensors with those that stack experts replaced by one for each expert, under the names its family gives them.

    Parameters
    ----------
    tensors : mapping of str to TensorInfo
    config : mapping
        ``config.json``; other families than those known keep theirs as they are.

    Raises
    ------
    InputError
        A stack that is not three-dimensional, or of an odd number of rows; a name that is there both ways.
    """
    names = _FAMILIES.get(str(config.get("model_type")))
    if names is None or not any(_STACKED.fullmatch(name) for name in tensors):
        return tensors
    found: dict[str, TensorInfo] = {}
    for info in tensors.values():
        for part in _parts(info, names):
            if part.name in found:
                raise InputError("stands there both stacked and alone", file=part.file, tensor=part.name)
            found[part.name] = part
    return found


def _parts(info: TensorInfo, names: _Names) -> Iterator[TensorInfo]:
    stacked, router = _STACKED.fullmatch(info.name), _ROUTER.fullmatch(info.name)
    if stacked is None:
        name = f"{router[1]}{names.module}.gate.weight" if router else info.name
        yield TensorInfo(name, info.dtype, info.shape, info.file, info.offset, info.nbytes)
        return
    linears = (names.gate, names.up) if stacked[2] == "gate_up_proj" else (names.down,)
    if len(info.shape) != 3 or info.shape[1] % len(linears):
        expected = "(experts, 2 * intermediate, hidden)" if len(linears) == 2 else "(experts, hidden, intermediate)"
        raise InputError(
            "not a stack of experts", file=info.file, tensor=info.name, expected=expected, found=list(info.shape)
        )
    count, rows, columns = info.shape
    shape = (rows // len(linears), columns)
    nbytes = info.nbytes // max(1, count * len(linears))
    for number in range(count):
        for place, linear in enumerate(linears):
            name = f"{stacked[1]}{names.module}.experts.{number}.{linear}.weight"
            offset = info.offset + (number * len(linears) + place) * nbytes
            yield TensorInfo(name, info.dtype, shape, info.file, offset, nbytes)
