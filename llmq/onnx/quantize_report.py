"""What a run over an ONNX model did, or would do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from llmq.evaluate.sums import normalized
from llmq.onnx.element_types import type_name

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.onnx.graph_scopes import Holder
    from llmq.onnx.quantize_plan import GraphPlan, WeightPlan
    from llmq.onnx.quantize_run import SquaredError

__all__ = ["OnnxReport"]


@dataclass(frozen=True)
class OnnxReport:
    """Result of `llmq.onnx.quantize_model`.

    Parameters
    ----------
    output : Path
        The model; its data stands beside it, in a file with `.data` behind its name.
    plan : GraphPlan
        What was decided, weight by weight.
    state : {"quantized", "dry run"}
        What happened.
    source_bytes, output_bytes : int
        Of the data of all tensors, before and after.
    opsets : (int, int)
        Version of the standard operators, before and after.
    errors : dict
        Of each quantized weight; empty where nothing ran.
    seconds : float
        Wall time.
    peak_anon_bytes, peak_rss_bytes : int
        Peak anonymous and total resident memory of the process; 0 where nothing ran.
    predicted_peak_bytes : int
        Of anonymous memory.
    """

    output: Path
    plan: GraphPlan
    state: str
    source_bytes: int
    output_bytes: int
    opsets: tuple[int, int]
    errors: dict[Holder, SquaredError] = field(default_factory=dict)
    seconds: float = 0.0
    peak_anon_bytes: int = 0
    peak_rss_bytes: int = 0
    predicted_peak_bytes: int = 0

    @property
    def parameters(self) -> int:
        """Elements of all tensors that may be weights."""
        return sum(prod(weight.shape) for weight in self.plan.weights)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of these tensors over their elements."""
        return 8.0 * sum(w.output_bytes for w in self.plan.weights) / max(1, self.parameters)

    @property
    def bits_per_weight_quantized(self) -> float:
        """The same of the quantized ones, scales included."""
        chosen = self.plan.quantized
        return 8.0 * sum(w.output_bytes for w in chosen) / max(1, sum(prod(w.shape) for w in chosen))

    @property
    def nmse(self) -> float | None:
        """Squared error of all quantized weights over their squares; None where nothing ran."""
        if not self.errors:
            return None
        error, squares = (sum(column) for column in zip(*self.errors.values(), strict=True))
        return normalized(error, squares)

    @property
    def nodes(self) -> Counter[str]:
        """How many nodes read quantized weights, by operator and what they read."""
        found: Counter[str] = Counter()
        for weight in self.plan.quantized:
            for form, uses in weight.forms.items():
                found[f"{form.kind}, {weight.treatment}"] += len(uses)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq quantize --json` prints, without its schema number."""
        return {
            "output": str(self.output),
            "state": self.state,
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_quantized": self.bits_per_weight_quantized,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "peak_anon_bytes": self.peak_anon_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "predicted_peak_bytes": self.predicted_peak_bytes,
            "opset": self.opsets[1],
            "source_opset": self.opsets[0],
            "nmse": self.nmse,
            "nodes": dict(sorted(self.nodes.items())),
            "tensors": [self._tensor(weight) for weight in self.plan.weights],
        }

    def _tensor(self, weight: WeightPlan) -> dict[str, Any]:
        spec, error = weight.spec, self.errors.get(weight.holder)
        layouts = list(weight.layouts.values())
        return {
            "name": weight.holder.name,
            "dtype": type_name(weight.holder.tensor.data_type),
            "shape": list(weight.shape),
            "ops": list(weight.ops),
            "places": list(weight.places),
            "becomes": [str(form.kind) for form in weight.forms],
            "bits": spec.bits if spec else None,
            "group_size": layouts[0].group_size if layouts else None,
            "symmetric": spec.symmetric if spec else None,
            "bytes": weight.output_bytes,
            "nmse": error.nmse if error else None,
            "reason": weight.reason or None,
        }
