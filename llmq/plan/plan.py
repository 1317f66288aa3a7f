"""What a run will do, tensor by tensor, decided from headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from llmq.architectures.roles import Role

if TYPE_CHECKING:
    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.layout import OutputTensor, ShardLayout
    from llmq.spec import QuantSpec, Recipe

__all__ = ["Plan", "TensorPlan"]


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one source tensor.

    Parameters
    ----------
    info : TensorInfo
        Where it stands in the source.
    role : Role
        What it does in the model.
    spec : QuantSpec or None
        How it is quantized (resolved); None copies its bytes.
    reason : str
        Why it is kept; empty when quantized.
    outputs : tuple of OutputTensor
        What it becomes.
    rows_per_block : int
        Rows read, quantized and written at a time.
    options : tuple of QuantSpec
        What a goal may choose from (resolved), the smallest first; empty where nothing is left to choose.
    """

    info: TensorInfo
    role: Role
    spec: QuantSpec | None
    reason: str
    outputs: tuple[OutputTensor, ...]
    rows_per_block: int
    options: tuple[QuantSpec, ...] = ()

    @property
    def name(self) -> str:
        """Name in the source."""
        return self.info.name

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.info.shape)

    @property
    def output_bytes(self) -> int:
        """Bytes of all outputs."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over elements, scales included."""
        return 8.0 * self.output_bytes / max(1, self.parameters)


@dataclass(frozen=True)
class Plan:
    """A run of `llmq quantize`, decided and sized before any weight is read.

    Parameters
    ----------
    recipe : Recipe
        What was asked.
    tensors : tuple of TensorPlan
        In execution order: embeddings, blocks, final norm, head.
    shards : tuple of ShardLayout
        The files that will be written.
    config : dict
        `config.json` of the output.
    predicted_peak_bytes : int
        Peak anonymous memory of the process.
    warnings, hints : tuple of str
        What the user should know, and what would help, a line each.
    """

    recipe: Recipe
    tensors: tuple[TensorPlan, ...]
    shards: tuple[ShardLayout, ...]
    config: dict[str, Any]
    predicted_peak_bytes: int
    warnings: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def quantized(self) -> tuple[TensorPlan, ...]:
        """The tensors that are quantized."""
        return tuple(t for t in self.tensors if t.spec is not None)

    @property
    def source_bytes(self) -> int:
        """Bytes of all tensors of the source."""
        return sum(t.info.nbytes for t in self.tensors)

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(t.output_bytes for t in self.tensors)

    @property
    def file_bytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(shard.size for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Elements of all tensors of the source."""
        return sum(t.parameters for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Every byte of every tensor over all parameters."""
        return 8.0 * self.output_bytes / max(1, self.parameters)

    @property
    def bits_per_weight_quantized(self) -> float:
        """The quantized tensors with their scales, head and embeddings included where quantized."""
        elements = sum(t.parameters for t in self.quantized)
        return 8.0 * sum(t.output_bytes for t in self.quantized) / max(1, elements)

    def share_of_embeddings(self) -> float:
        """Part of the output that embedding tables kept in their dtype take up, 0 to 1."""
        kept = sum(t.output_bytes for t in self.tensors if t.role is Role.EMBEDDING and t.spec is None)
        return kept / max(1, self.output_bytes)
