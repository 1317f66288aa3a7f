"""The bytes of a checkpoint that every token needs, and how fast they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmq.architectures import decoder_config
from llmq.checkpoint.source import open_local
from llmq_kernels.bandwidth import checksum

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.checkpoint.header import TensorInfo

__all__ = ["StreamedWeights"]

_TABLE: Final = "model.embed_tokens."


class StreamedWeights:
    """What a token reads of a model, mapped as the runtime maps it: all but an untied embedding table.

    Parameters
    ----------
    model : str or Path
        A folder, or a Hub id.
    whole : bool
        With the table: what quantizing reads.

    Attributes
    ----------
    nbytes : int
    """

    def __init__(self, model: str | Path, *, whole: bool = False) -> None:
        with open_local(model) as source:
            skip = not whole and not decoder_config(source.config).tie_word_embeddings
            infos = [i for name, i in source.tensors.items() if not (skip and name.startswith(_TABLE))]
            files = {info.file: np.memmap(source.folder / info.file, np.uint8, "r") for info in infos}
        self._spans = [files[file].view(np.ndarray)[start:stop] for file, start, stop in _spans(infos)]
        self.nbytes = sum(info.nbytes for info in infos)

    def read(self) -> None:
        """Read all of it once, as fast as this machine can."""
        for span in self._spans:
            checksum(span)


def _spans(infos: list[TensorInfo]) -> list[tuple[str, int, int]]:
    """Join tensors that stand next to each other: `(file, start, stop)` each."""
    spans: list[tuple[str, int, int]] = []
    for info in sorted(infos, key=lambda info: (info.file, info.offset)):
        start, stop = info.offset, info.offset + info.nbytes
        if spans and spans[-1][0] == info.file and spans[-1][2] == start:
            start = spans.pop()[1]
        spans.append((info.file, start, stop))
    return spans
