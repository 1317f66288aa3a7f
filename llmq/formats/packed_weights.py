"""The quantized weights of a checkpoint by name, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from llmq.checkpoint.loaded import LoadedCheckpoint
from llmq.errors import InputError, UnsupportedError
from llmq.formats.compressed_tensors import SUFFIXES, already_quantized, decode
from llmq.formats.schemes import QUANT_METHOD, read_schemes
from llmq.spec import QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Container

    import numpy as np

    from llmq.checkpoint.source import Source
    from llmq.formats.schemes import Schemes

__all__ = ["PackedWeights", "StoredTensors", "parts_of", "read_packed"]

_PACKED: Final = ".weight_packed"


class StoredTensors(Protocol):
    """A checkpoint whose tensors can be had as arrays."""

    @property
    def source(self) -> Source:
        """Where they come from."""
        ...

    def tensor(self, name: str) -> np.ndarray:
        """One of them."""
        ...


def parts_of(module: str, tensors: Container[str]) -> dict[str, str]:
    """Names of the tensors that a module's packed weight is stored as, by suffix."""
    return {suffix: f"{module}.{suffix}" for suffix in SUFFIXES if f"{module}.{suffix}" in tensors}


def read_packed(stored: StoredTensors, schemes: Schemes, module: str) -> QuantizedTensor:
    """Take a module's packed weight.

    Raises
    ------
    InputError, UnsupportedError
        Tensors that do not fit the module's scheme; their file is named.
    """
    tensors = stored.source.tensors
    names = parts_of(module, tensors)
    arrays = {suffix: stored.tensor(name) for suffix, name in names.items()}
    try:
        return decode(arrays, schemes.scheme(module), module)
    except (InputError, UnsupportedError) as error:
        # A format knows tensors, not the file they stand in.
        raise type(error)(str(error), file=tensors[names["weight_packed"]].file, hint=error.hint) from error


class PackedWeights(Mapping[str, QuantizedTensor]):
    """Quantized weights by the names they have in the unquantized checkpoint; nothing is kept of what was read.

    Parameters
    ----------
    source : Source
        Open; a checkpoint without quantized weights has none.

    Raises
    ------
    UnsupportedError
        Quantized in a way that llmq does not read.
    InputError
        On opening, a configuration that is not sound; on access, tensors that do not fit it or cannot be read.
    """

    def __init__(self, source: Source) -> None:
        schemes = read_schemes(source.config)
        method = already_quantized(source.config, source.tensors)
        if method and (schemes is None or method != QUANT_METHOD):
            raise UnsupportedError(f"quantized by {method}, which llmq does not read", file=source.label)
        self._schemes = schemes
        self._loaded = LoadedCheckpoint(source)
        self._modules = {
            f"{name.removesuffix(_PACKED)}.weight": name.removesuffix(_PACKED)
            for name in source.tensors
            if name.endswith(_PACKED)
        }

    def __getitem__(self, name: str) -> QuantizedTensor:
        module = self._modules[name]
        assert self._schemes is not None
        return read_packed(self._loaded, self._schemes, module)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
