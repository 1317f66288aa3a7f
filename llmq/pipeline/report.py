"""What a run of `llmq quantize` did, or would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.plan import Plan, TensorPlan

__all__ = ["QuantizeReport"]


@dataclass(frozen=True)
class QuantizeReport:
    """Result of `llmq.quantize`.

    Parameters
    ----------
    output : Path
        The finished folder.
    plan : Plan
        What was decided, tensor by tensor.
    state : {"quantized", "already complete", "dry run"}
        What happened.
    seconds : float
        Wall time.
    peak_anon_bytes, peak_rss_bytes : int
        Peak anonymous and total resident memory of the process; 0 where nothing ran.
    skipped_files : tuple of str
        Files of the source that were not copied.
    """

    output: Path
    plan: Plan
    state: str
    seconds: float
    peak_anon_bytes: int
    peak_rss_bytes: int
    skipped_files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq quantize --json` prints, without its schema number."""
        plan = self.plan
        return {
            "output": str(self.output),
            "state": self.state,
            "source_bytes": plan.source_bytes,
            "output_bytes": plan.output_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "bits_per_weight_quantized": plan.bits_per_weight_quantized,
            "parameters": plan.parameters,
            "seconds": self.seconds,
            "peak_anon_bytes": self.peak_anon_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "predicted_peak_bytes": plan.predicted_peak_bytes,
            "warnings": list(plan.warnings),
            "skipped_files": list(self.skipped_files),
            "tensors": [_tensor(t) for t in plan.tensors],
        }


def _tensor(tensor: TensorPlan) -> dict[str, Any]:
    spec = tensor.spec
    return {
        "name": tensor.name,
        "dtype": tensor.info.dtype,
        "shape": list(tensor.info.shape),
        "role": str(tensor.role),
        "bits": spec.bits if spec else None,
        "group_size": spec.group_size if spec else None,
        "symmetric": spec.symmetric if spec else None,
        "bytes": tensor.output_bytes,
        "reason": tensor.reason or None,
    }
