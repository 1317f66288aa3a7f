"""Checkpoints whose linears are 8-bit floats with scales, seen as the bfloat16 ones that they stand for.

Every spelling means ``weight = code * scale``: the `_inv` of DeepSeek's and Qwen's names notwithstanding. A scale
belongs to the whole tensor, to a row, or to a block of 128 by 128, or whatever the configuration says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.errors import InputError, UnsupportedError
from llmq.formats.schemes import SECTIONS, quantization_section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source

__all__ = ["Float8Source", "dequantized"]

_CODES: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_SCALES: Final = ("weight_scale_inv", "weight_scale", "scale_weight", "scale")
"""What stands in a scale's name for `weight`: of DeepSeek and Qwen, compressed-tensors and Quark, ComfyUI, and DeepSeek
again."""

_FOR_ACTIVATIONS: Final = ("input_scale", "input_scale_inv", "scale_input", "activation_scale", "output_scale")
"""Scales of a module that say nothing of its weight."""

_FOR_CACHES: Final = (".k_scale", ".v_scale", ".q_scale", ".kv_scale")
_SCALE_DTYPES: Final = frozenset({"F32", "BF16", "F16", "F8_E8M0"})
_BLOCKS: Final = (128, 64, 32, 256)
_ELEMENTS: Final = 1 << 18
"""Elements that become wide at a time."""

_KEPT: Final = 8
"""Scales of so many tensors are remembered."""


@dataclass(frozen=True)
class _Coded:
    """A weight as it is stored.

    Parameters
    ----------
    info, scale : TensorInfo
    block : (int, int)
        Rows and columns that share a scale.
    """

    info: TensorInfo
    scale: TensorInfo
    block: tuple[int, int]


def dequantized(source: Source) -> Source:
    """`source`, or what stands for it in bfloat16 where it holds 8-bit floats.

    Raises
    ------
    UnsupportedError
        8-bit floats without a scale that is known: their values cannot be told.
    InputError
        A scale that does not fit its weight.
    """
    coded = [info for info in source.tensors.values() if info.dtype in _CODES]
    if not coded:
        return source
    section = quantization_section(source.config) or {}
    size = section.get("weight_block_size")
    asked = tuple(size) if isinstance(size, list) and all(type(n) is int and n > 0 for n in size) else ()
    return Float8Source(source, {info.name: _find(source, info, asked) for info in coded})


def _find(source: Source, info: TensorInfo, asked: tuple[int, ...]) -> _Coded:
    module, dot, last = info.name.rpartition(".")
    names = [f"{module}{dot}{ending}" for ending in _SCALES] if last == "weight" else []
    scale = next((source.tensors[name] for name in (*names, f"{info.name}_scale") if name in source.tensors), None)
    if scale is None or len(info.shape) != 2:
        raise UnsupportedError(
            f"{info.dtype} without a scale that llmq knows", file=info.file, tensor=info.name,
            hint="start from the original bf16 or f16 checkpoint",
        )  # fmt: skip
    if scale.dtype not in _SCALE_DTYPES:
        raise UnsupportedError(f"a scale of {scale.dtype}", file=scale.file, tensor=scale.name)
    block = _block(info.shape, scale.shape, asked)
    if block is None:
        expected = f"one for all, for each of {info.shape[0]} rows, or for each block"
        raise InputError(
            "the scale does not fit its weight", file=scale.file, tensor=scale.name, expected=expected,
            found=f"shape {list(scale.shape)} for {list(info.shape)}",
        )  # fmt: skip
    return _Coded(info, scale, block)


def _block(shape: tuple[int, ...], scale: tuple[int, ...], asked: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where its shape says nothing.

    >>> _block((256, 512), (2, 4), ()), _block((256, 512), (256, 1), ()), _block((256, 512), (), ())
    ((128, 128), (1, 512), (256, 512))
    """
    rows, columns = shape
    if prod(scale) == 1:
        return rows, columns
    if scale in ((rows,), (rows, 1)):
        return 1, columns
    candidates = [asked] if len(asked) == 2 else [(size, size) for size in _BLOCKS]
    for block in candidates:
        if scale == (-(-rows // block[0]), -(-columns // block[1])):
            return block[0], block[1]
    return None


class Float8Source:
    """A source whose 8-bit floats read as bfloat16; everything else is the source's own. See `Source`.

    Parameters
    ----------
    source : Source
        Closed with this one.
    coded : mapping
        The weights by name.
    """

    def __init__(self, source: Source, coded: Mapping[str, _Coded]) -> None:
        self._source, self._coded = source, coded
        self._tables = {code: _table(code) for code in {weight.info.dtype for weight in coded.values()}}
        self._scales: dict[str, np.ndarray] = {}
        self.label, self.folder, self.other_files = source.label, source.folder, source.other_files
        self.in_file_order = source.in_file_order
        self.config = {key: value for key, value in source.config.items() if key not in SECTIONS}
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, dtype="BF16", nbytes=2 * info.nbytes) if name in coded else info
            for name, info in source.tensors.items()
            if not self._is_scale(name)
        }

    def _is_scale(self, name: str) -> bool:
        module = name.rpartition(".")[0]
        of_weight = f"{module}.weight" in self._coded and name.rpartition(".")[2] in (*_SCALES, *_FOR_ACTIVATIONS)
        return of_weight or name.endswith(_FOR_CACHES) or name.removesuffix("_scale") in self._coded.keys() - {name}

    def identity(self) -> dict[str, Any]:
        """See `Source.identity`."""
        return self._source.identity()

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """See `Source.read_into`; bfloat16 is read in whole elements."""
        weight = self._coded.get(info.name)
        if weight is None:
            self._source.read_into(info, start, buffer)
            return
        out = np.frombuffer(buffer.cast("B"), np.uint16)
        if start < 0 or start % 2 or start // 2 + out.size > weight.info.nbytes:
            raise ValueError(f"bytes {start}..{start + 2 * out.size} of a tensor of {info.nbytes}")
        columns = info.shape[1]
        rows = max(1, _ELEMENTS // columns)
        done, place = 0, start // 2
        while done < out.size:
            row, column = divmod(place + done, columns)
            count = min(out.size - done, rows * columns - column)
            values = self._wide(weight, row, column, count)
            out[done : done + count] = values.view(np.uint16)
            done += count

    def _wide(self, weight: _Coded, row: int, column: int, count: int) -> np.ndarray:
        """Elements of a weight from (row, column) on, bfloat16 (count,)."""
        columns = weight.info.shape[1]
        codes = np.empty(count, np.uint8)
        self._source.read_into(weight.info, row * columns + column, codes.data)
        values: np.ndarray = self._tables[weight.info.dtype][codes]
        scale = self._scale(weight)
        last = row + (column + count - 1) // columns
        # (rows, columns), of which the first `column` and what comes after `count` are not wanted.
        by_row = scale[np.arange(row, last + 1) // weight.block[0]]
        wide = np.repeat(by_row, weight.block[1], axis=1)[:, :columns].reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are found where they are used
            values *= wide[column : column + count]
            return values.astype(NUMPY_DTYPES["BF16"])

    def _scale(self, weight: _Coded) -> np.ndarray:
        """Scales of a weight, float32 (blocks of rows, blocks of columns)."""
        found = self._scales.get(weight.info.name)
        if found is None:
            raw = np.empty(weight.scale.nbytes, np.uint8)
            self._source.read_into(weight.scale, 0, raw.data)
            rows = -(-weight.info.shape[0] // weight.block[0])
            found = raw.view(NUMPY_DTYPES[weight.scale.dtype]).astype(np.float32).reshape(rows, -1)
            while len(self._scales) >= _KEPT:
                self._scales.pop(next(iter(self._scales)), None)
            self._scales[weight.info.name] = found
        return found

    def check_unchanged(self) -> None:
        """See `Source.check_unchanged`."""
        self._source.check_unchanged()

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def __enter__(self) -> Float8Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _table(code: str) -> np.ndarray:
    """Values of all 256 codes, float32."""
    return np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES[code]).astype(np.float32)
