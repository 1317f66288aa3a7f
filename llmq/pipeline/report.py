"""What a run of `llmq quantize` did, or would do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from llmq.pipeline.edges import EdgeCounts, total
from llmq.plan.goals import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmq.pipeline.calibration import Calibration
    from llmq.pipeline.run_calibrated import BlockResult
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
    calibration : Calibration or None
        The text that was calibrated on.
    blocks : tuple of BlockResult
        How the blocks of a calibrated run came out; those that an earlier run finished are missing.
    memory : tuple of (float, int)
        Seconds since the start and anonymous bytes of the process, at most 512 samples with the peak among them.
    max_memory : int
        What the anonymous memory was bound to, in bytes.
    edges : mapping of str to EdgeCounts
        What tensors had at the edges of their grids, by name, as far as this run wrote them: those that were quantized,
        and those that were copied with NaN or infinity.
    """

    output: Path
    plan: Plan
    state: str
    seconds: float
    peak_anon_bytes: int
    peak_rss_bytes: int
    skipped_files: tuple[str, ...]
    calibration: Calibration | None = None
    blocks: tuple[BlockResult, ...] = ()
    memory: tuple[tuple[float, int], ...] = ()
    max_memory: int = 0
    edges: Mapping[str, EdgeCounts] = field(default_factory=dict)

    def goal(self) -> dict[str, Any] | None:
        """What was asked of a mixture of widths and what was reached; None where widths were given."""
        asked = self.plan.recipe.goal
        if asked is None:
            return None
        chosen = counted(self.plan)
        bits = 8.0 * sum(t.output_bytes for t in chosen) / max(1, sum(t.parameters for t in chosen))
        return asdict(asked) | {"reached": {"bits_per_weight": bits, "file_bytes": self.plan.file_bytes}}

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
            "max_memory_bytes": self.max_memory,
            "warnings": list(plan.warnings),
            "skipped_files": list(self.skipped_files),
            "goal": self.goal(),
            "calibration": _calibration(self.calibration),
            "blocks": [asdict(block) for block in self.blocks],
            "edges": self.edges_json(),
            "tensors": [_tensor(t, self.edges.get(t.name)) for t in plan.tensors],
        }

    def edges_json(self) -> dict[str, Any]:
        """What all tensors that this run wrote had at the edges, together.

        Beside the fields of `EdgeCounts`: `quantized_tensors`, how many of them were quantized and counted, and
        `nonfinite_tensors`, how many were copied with NaN or infinity.
        """
        counts = self.edges.values()
        return {
            "quantized_tensors": sum(t.name in self.edges for t in self.plan.quantized),
            "nonfinite_tensors": sum(found.nonfinite_values > 0 for found in counts),
        } | total(counts).to_json()


def _calibration(found: Calibration | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"text": found.text, "tokens": found.tokens.size, "context": found.tokens.shape[1], "sha256": found.sha256}


def _tensor(tensor: TensorPlan, edges: EdgeCounts | None) -> dict[str, Any]:
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
        "edges": edges.to_json() if edges else None,
    }
