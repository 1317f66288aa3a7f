"""Errors of weights by decoder block and projection."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures.roles import layer_index
from llmq.report.colours import colour, ink

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Cell", "Heatmap", "heatmap", "projection"]

_ORDER: Final = ("q", "k", "v", "qkv", "o", "out", "gate", "up", "gate_up", "down")
_SUFFIX: Final = re.compile(r"(?:_proj)?\.weight$")


def projection(name: str) -> str:
    """Short name of what a weight does in its block.

    >>> projection("model.layers.0.self_attn.q_proj.weight"), projection("model.layers.3.mlp.fc1.weight")
    ('q', 'fc1')
    """
    return _SUFFIX.sub("", name).rpartition(".")[2]


@dataclass(frozen=True)
class Cell:
    """A field of the heatmap.

    Parameters
    ----------
    name : str
        Of the weight; of the worst one where a block has several such as experts.
    count : int
        How many there are.
    bits : int
        Of that weight's codes.
    sqnr_db : float
        Signal to quantization noise of that weight in decibels; infinite where nothing changed.
    nmse : float
        Squared error over squares of that weight.
    colour, ink : str
        Ground and text.
    """

    name: str
    count: int
    bits: int
    sqnr_db: float
    nmse: float
    colour: str
    ink: str


@dataclass(frozen=True)
class Heatmap:
    """All fields, a row for each block.

    Parameters
    ----------
    columns : tuple of str
        Projections.
    rows : tuple of (int, tuple of Cell or None)
        The block's number and its fields, None where it has no such quantized weight.
    low, high : float
        What the darkest and the lightest colour stand for, in decibels.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    low: float
    high: float

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Colours from low to high, each with its value or nothing: a stop for each tenth."""
        return tuple(
            (colour(i / 10), f"{self.low + (self.high - self.low) * i / 10:.1f}" if i % 5 == 0 else "")
            for i in range(11)
        )


def heatmap(tensors: Sequence[Mapping[str, Any]]) -> Heatmap | None:
    """Lay out rows of the table that have an error and belong to a block; None where there are none."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        layer = layer_index(tensor["name"])
        if layer is not None and tensor.get("quantized") and tensor.get("sqnr_db") is not None:
            groups.setdefault((layer, projection(tensor["name"])), []).append(tensor)
    if not groups:
        return None
    worst = {place: min(found, key=lambda t: float(t["sqnr_db"])) for place, found in groups.items()}
    finite = [float(t["sqnr_db"]) for t in worst.values() if math.isfinite(t["sqnr_db"])] or [0.0]
    low, high = min(finite), max(finite)
    columns = tuple(sorted({name for _, name in groups}, key=_rank))
    layers = sorted({layer for layer, _ in groups})

    def cell(place: tuple[int, str]) -> Cell | None:
        if place not in worst:
            return None
        tensor = worst[place]
        value = float(tensor["sqnr_db"])
        share = 1.0 if value == math.inf else (value - low) / (high - low) if high > low else 0.5
        paint = (colour(share), ink(share))
        return Cell(tensor["name"], len(groups[place]), tensor["bits"], value, float(tensor["nmse"]), *paint)

    rows = tuple((layer, tuple(cell((layer, column)) for column in columns)) for layer in layers)
    return Heatmap(columns, rows, low, high)


def _rank(column: str) -> tuple[int, str]:
    return (_ORDER.index(column) if column in _ORDER else len(_ORDER), column)
