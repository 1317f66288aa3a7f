"""What a loaded model holds of its checkpoint: mapped files, and a reader of the blocks that are streamed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmq.checkpoint.block_reader import BlockReader
from llmq.checkpoint.streamed import Turn
from llmq.runtime.residency import streamable
from llmq.system.memory import available_memory

if TYPE_CHECKING:
    from llmq.checkpoint.mapped import MappedCheckpoint
    from llmq.checkpoint.source import FolderSource
    from llmq.runtime.residency import Residency

__all__ = ["Held", "open_reader", "turns"]


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
    """Make buffers for the streamed blocks, and begin to fill them."""
    blocks = streamable(source.tensors)
    whole = sum(info.nbytes for info in source.tensors.values())
    # The page cache helps only if all of it stays there.
    return BlockReader(source, [blocks[n] for n in residency.streamed], cached=whole < available_memory())


def turns(reader: BlockReader | None, residency: Residency | None) -> dict[int, Turn]:
    """By number of each streamed block of the model, the time in which it is there."""
    if reader is None or residency is None:
        return {}
    lock = threading.RLock()
    return {layer: Turn(reader, number, lock) for number, layer in enumerate(residency.streamed)}
