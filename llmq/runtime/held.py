"""What a loaded model holds of its checkpoint: mapped files, and a reader of the blocks that are streamed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from llmq.checkpoint.block_reader import BlockReader
from llmq.checkpoint.mapped_parts import MappedParts
from llmq.checkpoint.streamed import Turn
from llmq.runtime.residency import experts_of, streamable
from llmq.system.memory import available_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmq.checkpoint.mapped import MappedCheckpoint
    from llmq.checkpoint.source import FolderSource
    from llmq.runtime.residency import Residency

__all__ = ["Held", "Presence", "open_reader"]


@dataclass(frozen=True)
class Held:
    """Memory of a model.

    Parameters
    ----------
    mapped : MappedCheckpoint
    residency : Residency or None
        What was planned.
    reader : BlockReader or None
        Of the blocks that are streamed.
    tokens : int or None
        Longest text, where memory is limited.
    """

    mapped: MappedCheckpoint
    residency: Residency | None = None
    reader: BlockReader | None = None
    tokens: int | None = None

    def close(self) -> None:
        """Stop reading ahead."""
        if self.reader is not None:
            self.reader.close()


def open_reader(source: FolderSource, residency: Residency) -> BlockReader:
    """Make buffers for the streamed blocks; the first block to be used begins to fill them."""
    blocks = streamable(source.tensors)
    whole = sum(info.nbytes for info in source.tensors.values())
    # The page cache helps only if all of it stays there.
    return BlockReader(source, [blocks[n] for n in residency.streamed], cached=whole < available_memory())


@dataclass(frozen=True)
class Presence:
    """How blocks and experts that are not always in memory come there.

    Parameters
    ----------
    turns : dict of int to context manager
        By number of each streamed block of the model, the time in which it is there.
    experts : dict of int to callable
        By number of each block, what is told which of its experts are used: see `SparseMlp.used_next`.
    """

    turns: Mapping[int, Turn] = field(default_factory=dict)
    experts: Mapping[int, Callable[[int, int | None], None]] = field(default_factory=dict)

    @classmethod
    def of(cls, residency: Residency | None, mapped: MappedCheckpoint, reader: BlockReader | None) -> Presence:
        """Carry out what was planned."""
        if residency is None:
            return cls()
        turns = {}
        if reader is not None:
            turns = {layer: Turn(reader, number) for number, layer in enumerate(residency.streamed)}
        if residency.expert_bytes is None:
            return cls(turns)
        names = experts_of(mapped.source.tensors)
        parts = MappedParts(mapped, names, residency.expert_bytes)
        return cls(turns, {layer: partial(_use, parts, layer) for layer, _ in names})


def _use(parts: MappedParts[tuple[int, int]], layer: int, number: int, following: int | None) -> None:
    parts.use((layer, number), None if following is None else (layer, following))
