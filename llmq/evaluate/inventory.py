"""What a checkpoint holds, weight by weight, from its headers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES, bytes_per_element
from llmq.errors import InputError
from llmq.formats.compressed_tensors import SUFFIXES, already_quantized, read_schemes
from llmq.formats.schemes import QUANT_METHOD, quantization_section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source
    from llmq.formats.compressed_tensors import Schemes
    from llmq.spec import QuantSpec

__all__ = ["DENSE", "Entry", "Inventory", "inventory"]

DENSE: Final = "safetensors"
"""Format of a checkpoint that is not quantized."""

_PACKED: Final = ".weight_packed"


@dataclass(frozen=True)
class Entry:
    """A weight with everything that is stored of it.

    Parameters
    ----------
    name : str
        As it is or was called in the unquantized checkpoint.
    dtype : str
        Code of safetensors; of the scales for a packed weight.
    shape : tuple of int
        `(out_features, in_features)` for a packed weight.
    bits : int
        Of an element or a code.
    parts : mapping of str to TensorInfo
        Stored tensors by suffix; a dense weight has the one suffix `""`.
    spec : QuantSpec or None
        How a packed weight is quantized.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    parts: Mapping[str, TensorInfo]
    spec: QuantSpec | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes, scales included."""
        return sum(info.nbytes for info in self.parts.values())

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Inventory:
    """All weights of a checkpoint.

    Parameters
    ----------
    architecture : str or None
        As `config.json` names it.
    format : str
        `safetensors` for an unquantized checkpoint, else how it is quantized.
    entries : tuple of Entry
        In the order of the files.
    readable : bool
        Whether the format is known, so that parameters can be counted.
    """

    architecture: str | None
    format: str
    entries: tuple[Entry, ...]
    readable: bool = True

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def parameters(self) -> int | None:
        """Elements of all weights; None where packed codes cannot be told from weights."""
        return sum(entry.parameters for entry in self.entries) if self.readable else None

    @property
    def bits_per_weight(self) -> float | None:
        """Every byte of every tensor over all parameters."""
        return 8.0 * self.total_bytes / self.parameters if self.parameters else None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq inspect --json` prints, without its schema number."""
        return {
            "architecture": self.architecture,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "total_bytes": self.total_bytes,
            "format": self.format,
            "tensors": [_describe(entry) for entry in self.entries],
        }


def _describe(entry: Entry) -> dict[str, Any]:
    spec = entry.spec
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "bits": entry.bits,
        "bytes": entry.nbytes,
        "group_size": spec.group_size if spec else None,
        "symmetric": spec.symmetric if spec else None,
    }


def inventory(source: Source) -> Inventory:
    """List the weights of an open checkpoint; of their data, only the few bytes that hold a packed shape are read.

    Raises
    ------
    InputError
        Packed tensors without a scheme or shape, or with an absurd one.
    """
    method = already_quantized(source.config, source.tensors)
    schemes = read_schemes(source.config) if _is_ours(source) else None
    entries = []
    for name, info in source.tensors.items():
        module = name.removesuffix(_PACKED)
        if schemes is not None and module != name:
            entries.append(_packed(source, module, schemes))
        elif schemes is None or not _belongs(name, source.tensors):
            bits = 8 * bytes_per_element(info.dtype)
            entries.append(Entry(name, info.dtype, info.shape, bits, {"": info}))
    return Inventory(
        _architecture(source.config), method or DENSE, tuple(entries), method is None or schemes is not None
    )


def _is_ours(source: Source) -> bool:
    section = quantization_section(source.config) or {}
    packed = any(name.endswith(_PACKED) for name in source.tensors)
    return packed and ("config_groups" in section) and section.get("quant_method", QUANT_METHOD) == QUANT_METHOD


def _architecture(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else None


def _belongs(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a tensor is a part of a packed weight other than its codes."""
    module, _, suffix = name.rpartition(".")
    return suffix in SUFFIXES and f"{module}{_PACKED}" in tensors


def _packed(source: Source, module: str, schemes: Schemes) -> Entry:
    names = {suffix: f"{module}.{suffix}" for suffix in SUFFIXES}
    parts = {suffix: source.tensors[name] for suffix, name in names.items() if name in source.tensors}
    for suffix in ("weight_scale", "weight_shape"):
        if suffix not in parts:
            raise InputError(f"{suffix} is missing", tensor=module)
    spec = schemes.scheme(module)
    return Entry(f"{module}.weight", parts["weight_scale"].dtype, _shape(source, parts), spec.bits, parts, spec)


def _shape(source: Source, parts: Mapping[str, TensorInfo]) -> tuple[int, int]:
    info, packed = parts["weight_shape"], parts["weight_packed"]
    if info.shape != (2,) or info.dtype not in ("I64", "I32"):
        raise InputError("must be two integers", file=info.file, tensor=info.name)
    stored = np.empty(2, NUMPY_DTYPES[info.dtype])
    source.read_into(info, 0, stored.view(np.uint8).data)
    rows, columns = stored.tolist()
    fits = len(packed.shape) == 2 and rows == packed.shape[0] and 0 < columns <= 32 * packed.shape[1]
    if not fits:
        raise InputError(
            "does not fit the packed codes",
            file=info.file,
            tensor=info.name,
            expected=list(packed.shape),
            found=[rows, columns],
        )
    return rows, columns
