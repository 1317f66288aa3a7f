"""What a quantized weight becomes in a graph: which operator reads it, and the tensors that hold it then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx

from llmq.onnx.element_types import code_type, packed_bytes, packed_codes
from llmq.onnx.opsets import FOUR_BIT_OPSET, TWO_BIT_OPSET
from llmq_kernels.pack import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.spec import QuantizedTensor, QuantSpec, ScaleDtype

__all__ = ["Form", "Kind", "Layout", "Part", "Write"]

_TYPE: Final = onnx.TensorProto
_SCALE_DTYPES: Final[dict[int, ScaleDtype]] = {
    _TYPE.FLOAT: "float32",
    _TYPE.FLOAT16: "float16",
    _TYPE.BFLOAT16: "bfloat16",
}
_LEAST_GROUP: Final = 16


class Kind(StrEnum):
    """The operator that reads a quantized weight."""

    MATMUL_NBITS = "MatMulNBits"
    GATHER = "GatherBlockQuantized"
    DEQUANTIZE = "DequantizeLinear"
    MATMUL_INTEGER = "MatMulInteger"
    CONV_INTEGER = "ConvInteger"


@dataclass(frozen=True)
class Form:
    """How a weight is read.

    Parameters
    ----------
    kind : Kind
    transposed : bool
        Whether the rows that share scales are columns of the tensor as it is stored.
    data_type : int
        Of the activations that it meets.
    """

    kind: Kind
    transposed: bool
    data_type: int

    @property
    def integer(self) -> bool:
        """Whether activations are quantized by nodes of their own."""
        return self.kind in (Kind.MATMUL_INTEGER, Kind.CONV_INTEGER)

    def opset(self, bits: int) -> int:
        """The least version of the standard operators that has it."""
        if self.kind is Kind.DEQUANTIZE:
            return TWO_BIT_OPSET if bits == 2 else FOUR_BIT_OPSET
        return 11 if self.integer else 1


class Part(NamedTuple):
    """A tensor that holds something of a quantized weight."""

    suffix: str
    data_type: int
    dims: tuple[int, ...]
    nbytes: int


class Write(NamedTuple):
    """Bytes for a part: uint8 `data` (n, m), each of its rows `stride` bytes behind the one before, from `offset`."""

    suffix: str
    offset: int
    data: np.ndarray
    stride: int


@dataclass(frozen=True)
class Layout:
    """A weight of some shape in some form.

    Parameters
    ----------
    form : Form
    spec : QuantSpec
        As the user asked for; `resolved` is what rows are quantized by.
    shape : tuple of int
        Of the stored tensor.
    """

    form: Form
    spec: QuantSpec
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Output features, filters, or entries of a table."""
        return self.shape[1] if self.form.transposed else self.shape[0]

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.shape[0] if self.form.transposed else prod(self.shape[1:])

    @property
    def group_size(self) -> int:
        """Elements that share a scale: the whole row for integer products, and no more than a short row needs."""
        if self.form.integer:
            return self.columns
        size = self.spec.group_size
        while size > _LEAST_GROUP and size // 2 >= self.columns:
            size //= 2
        return size

    @property
    def padded(self) -> int:
        """Elements of a row with its last group filled up."""
        return -(-self.columns // self.group_size) * self.group_size

    @property
    def n_groups(self) -> int:
        """Groups of a row."""
        return self.padded // self.group_size

    @property
    def resolved(self) -> QuantSpec:
        """What a row of `padded` elements is quantized by."""
        dtype: ScaleDtype = "float32" if self.form.integer else _SCALE_DTYPES[self.form.data_type]
        return replace(self.spec, group_size=self.group_size).resolve(self.padded, dtype)

    def parts(self) -> tuple[Part, ...]:
        """The tensors that hold the weight."""
        bits, rows, columns, groups = self.spec.bits, self.rows, self.columns, self.n_groups
        scale_type = _TYPE.FLOAT if self.form.integer else self.form.data_type
        width = 4 if scale_type == _TYPE.FLOAT else 2
        scale = Part("scale", scale_type, (rows, groups), rows * groups * width)
        points: tuple[Part, ...] = ()
        if self.form.kind in (Kind.MATMUL_NBITS, Kind.GATHER):
            if not self.spec.symmetric:
                size = packed_bytes(groups, bits)
                points = (Part("zero_point", _TYPE.UINT8, (rows, size), rows * size),)
            size = self._row_bytes
            dims = (rows, groups, size // groups) if self.form.kind is Kind.MATMUL_NBITS else (rows, size)
            return Part("codes", _TYPE.UINT8, dims, rows * size), scale, *points
        if self.form.kind is Kind.DEQUANTIZE:
            kind = code_type(bits, signed=self.spec.symmetric)
            if not self.spec.symmetric:
                points = (Part("zero_point", kind, (rows, groups), packed_bytes(rows * groups, bits)),)
            return Part("codes", kind, (rows, columns), packed_bytes(rows * columns, bits)), scale, *points
        return self._integer_parts()

    def _integer_parts(self) -> tuple[Part, ...]:
        rows, size = self.rows, self.rows * self.columns
        if self.form.kind is Kind.CONV_INTEGER:
            scale_dims = (rows, *[1] * (len(self.shape) - 2))
            codes = Part("codes", _TYPE.UINT8, self.shape, size)
        else:
            scale_dims = (rows,)
            codes = Part("codes", _TYPE.INT8 if self.signed else _TYPE.UINT8, (self.columns, rows), size)
        return codes, Part("scale", _TYPE.FLOAT, scale_dims, 4 * rows)

    @property
    def signed(self) -> bool:
        """Whether codes of an integer product are stored as signed integers: seven bits, whose products never saturate.

        Eight bits meet instructions on processors without VNNI that add pairs of products of unsigned and signed
        bytes in 16 bits; as unsigned bytes they meet others, which are exact.
        """
        return self.form.kind is Kind.MATMUL_INTEGER and self.spec.bits < 8

    @property
    def _row_bytes(self) -> int:
        columns = self.padded if self.form.kind is Kind.MATMUL_NBITS else self.columns
        return packed_bytes(columns, self.spec.bits)

    def same_bytes(self, other: Layout) -> bool:
        """Whether codes and scales are those of another layout of the weight: only the shapes of codes differ."""
        blocked = {Kind.MATMUL_NBITS, Kind.GATHER}
        return (
            {self.form.kind, other.form.kind} <= blocked
            and replace(self.form, kind=other.form.kind) == other.form
            and self.padded == self.columns
        )

    def writes(self, start: int, quantized: QuantizedTensor) -> Iterator[Write]:
        """What rows from `start` on, a multiple of 8, have to be written as.

        Parameters
        ----------
        start : int
        quantized : QuantizedTensor
            Of `padded` columns.
        """
        scale = np.ascontiguousarray(quantized.scale)
        yield _whole("scale", start * self.n_groups * scale.itemsize, scale)
        if self.form.kind in (Kind.MATMUL_NBITS, Kind.GATHER):
            size = self._row_bytes
            yield _whole("codes", start * size, quantized.packed[:, :size])
            if quantized.zero_point is not None:
                size = packed_bytes(self.n_groups, self.spec.bits)
                points = pack(np.ascontiguousarray(quantized.zero_point), self.spec.bits)
                yield _whole("zero_point", start * size, points[:, :size])
            return
        codes = quantized.codes()[:, : self.columns]
        if self.form.integer:
            yield from self._integer_writes(start, codes)
            return
        bits = self.spec.bits
        if quantized.zero_point is None:
            codes = codes ^ np.uint8(1 << (bits - 1))  # two's complement
        else:
            yield _whole("zero_point", start * self.n_groups * bits // 8, packed_codes(quantized.zero_point, bits))
        yield _whole("codes", start * self.columns * bits // 8, packed_codes(codes, bits))

    def _integer_writes(self, start: int, codes: np.ndarray) -> Iterator[Write]:
        if self.form.kind is Kind.CONV_INTEGER:
            yield _whole("codes", start * self.columns, codes)
            return
        if self.signed:
            codes = (codes - np.uint8(1 << (self.spec.bits - 1))).view(np.int8)
        yield Write("codes", start, np.ascontiguousarray(codes.T).view(np.uint8), self.rows)


def _whole(suffix: str, offset: int, data: np.ndarray) -> Write:
    flat = np.ascontiguousarray(data).view(np.uint8).reshape(1, -1)
    return Write(suffix, offset, flat, flat.shape[1])
