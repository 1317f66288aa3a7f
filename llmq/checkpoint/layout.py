"""How an output's tensors are laid out in shards: every header and offset is known before the first byte is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.dtypes import bytes_per_element
from llmq.checkpoint.index import SINGLE_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OutputTensor", "ShardLayout", "index_of", "lay_out"]

ALIGNMENT: Final = 64
"""The data of a shard starts at a multiple of this, in bytes."""


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written.

    Parameters
    ----------
    name : str
    dtype : str
        Code of safetensors, such as ``"BF16"``.
    shape : tuple of int
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its data."""
        nbytes = bytes_per_element(self.dtype)
        for size in self.shape:
            nbytes *= size
        return nbytes


@dataclass(frozen=True)
class ShardLayout:
    """One file of an output.

    Parameters
    ----------
    file : str
        Its name.
    tensors : tuple of OutputTensor
        In the order of their bytes, without holes.
    """

    file: str
    tensors: tuple[OutputTensor, ...]

    @cached_property
    def header(self) -> bytes:
        """Everything before the data: length, JSON, and spaces up to a multiple of 64 bytes."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in self.tensors:
            offsets = [end, end + tensor.nbytes]
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            end += tensor.nbytes
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        length = len(text) + -(8 + len(text)) % ALIGNMENT
        return length.to_bytes(8, "little") + text.ljust(length)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Offset of each tensor from the start of the file."""
        found = {}
        end = len(self.header)
        for tensor in self.tensors:
            found[tensor.name] = end
            end += tensor.nbytes
        return found

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_bytes


def lay_out(tensors: Sequence[OutputTensor], max_shard_size: int) -> tuple[ShardLayout, ...]:
    """Part tensors, in the order given, into shards of at most `max_shard_size` bytes of data each.

    A tensor larger than that has a shard of its own. One shard is called ``model.safetensors``, several
    ``model-00001-of-0000N.safetensors``.

    Raises
    ------
    ValueError
        Duplicate or reserved names, or a shard size that is not positive.

    >>> [shard.file for shard in lay_out([OutputTensor("a", "U8", (4,)), OutputTensor("b", "F32", (2,))], 8)]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if max_shard_size < 1:
        raise ValueError(f"the shard size must be positive, not {max_shard_size}")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names) or "__metadata__" in names:
        raise ValueError("duplicate or reserved tensor names")
    parts: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if parts[-1] and size + tensor.nbytes > max_shard_size:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    if len(parts) == 1:
        return (ShardLayout(SINGLE_FILE, tuple(parts[0])),)
    return tuple(
        ShardLayout(f"model-{number:05d}-of-{len(parts):05d}.safetensors", tuple(part))
        for number, part in enumerate(parts, start=1)
    )


def index_of(shards: Sequence[ShardLayout]) -> dict[str, object]:
    """Return the content of ``model.safetensors.index.json``."""
    return {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {tensor.name: shard.file for shard in shards for tensor in shard.tensors},
    }
