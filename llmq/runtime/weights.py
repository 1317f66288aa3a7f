"""The tensors of a checkpoint, taken one by one and checked; what nobody takes is an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.dtypes import FLOATS
from llmq.errors import InputError, UnsupportedError
from llmq.formats.packed_weights import parts_of, read_packed
from llmq.runtime.linear import DenseLinear, PackedLinear

if TYPE_CHECKING:
    from llmq.checkpoint.streamed import Tensors
    from llmq.formats.compressed_tensors import Schemes
    from llmq.runtime.linear import Compute, Linear

__all__ = ["Weights"]

_IGNORABLE: Final = re.compile(r"rotary_emb\.inv_freq$")
"""Frequencies that old checkpoints store and every runtime computes."""


class Weights:
    """Access to a checkpoint's tensors by module, packed or dense.

    Parameters
    ----------
    arrays : Tensors
        Where tensors come from.
    schemes : Schemes or None
        How packed modules are quantized; None for a checkpoint without any.
    compute : {"int8", "float32"}
        Of packed linears.
    """

    def __init__(self, arrays: Tensors, schemes: Schemes | None, compute: Compute) -> None:
        self._arrays = arrays
        self._infos = arrays.source.tensors
        self._schemes = schemes
        self._compute = compute
        self._taken: set[str] = set()
        self.elements = 0
        """Parameters of the tensors taken so far; a quantized weight counts as its elements."""

    def has(self, module: str) -> bool:
        """Whether a module has a weight, dense or packed."""
        return f"{module}.weight" in self._infos or f"{module}.weight_packed" in self._infos

    def vector(self, name: str, size: int) -> np.ndarray:
        """Take a norm's weight or a bias, float32 (size,); copied."""
        return self._float(name, (size,)).astype(np.float32)

    def linear(self, module: str, shape: tuple[int, int], *, bias: bool = False) -> Linear:
        """Take a module's weight `(out_features, in_features)` and, where it must have one, its bias."""
        packed, dense = f"{module}.weight_packed" in self._infos, f"{module}.weight" in self._infos
        if packed and dense:
            raise self._error("stands there both packed and dense", f"{module}.weight")
        offset = self.vector(f"{module}.bias", shape[0]) if bias else None
        if packed:
            return self._packed(module, shape, offset)
        weight = self._float(f"{module}.weight", shape)
        # The kernels know no float64; nobody stores a large model in it.
        return DenseLinear(weight.astype(np.float32) if weight.dtype == np.float64 else weight, offset)

    def check_all_taken(self) -> None:
        """Raise InputError if tensors are left that the decoder has no use for."""
        left = [name for name in self._infos if name not in self._taken and not _IGNORABLE.search(name)]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise self._error(f"this architecture has no such tensor{more}", left[0])

    def _packed(self, module: str, shape: tuple[int, int], bias: np.ndarray | None) -> PackedLinear:
        names = parts_of(module, self._infos)
        if self._schemes is None:
            raise self._error("packed, but config.json has no quantization_config", names["weight_packed"])
        weight = read_packed(self._arrays, self._schemes, module)
        if weight.shape != shape:
            raise self._error("shape does not fit config.json", f"{module}.weight", list(shape), list(weight.shape))
        try:
            weight.matrix  # noqa: B018 - checked now, not at the first multiplication
        except (TypeError, ValueError) as error:
            raise self._error(str(error), names["weight_packed"]) from error
        self._take(*names.values())
        self.elements += shape[0] * shape[1]
        return PackedLinear(weight, bias, self._compute)

    def _float(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        info = self._infos.get(name)
        if info is None:
            raise InputError("missing", file=self._arrays.source.label, tensor=name, hint=_MISSING)
        if info.shape != shape:
            raise self._error("shape does not fit config.json", name, list(shape), list(info.shape))
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"dtype {info.dtype} is not supported",
                file=info.file,
                tensor=name,
                expected=f"one of {', '.join(FLOATS)}",
            )
        self._take(name)
        self.elements += int(np.prod(shape, dtype=np.int64))
        return self._arrays.tensor(name)

    def _take(self, *names: str) -> None:
        self._taken.update(names)

    def _error(self, what: str, tensor: str, expected: Any = None, found: Any = None) -> InputError:
        module = tensor.rpartition(".")[0]
        names = (tensor, f"{module}.weight_packed")
        file = next((self._infos[name].file for name in names if name in self._infos), self._arrays.source.label)
        return InputError(what, file=file, tensor=tensor, expected=expected, found=found)


_MISSING: Final = "the checkpoint is incomplete, or config.json describes another model"
