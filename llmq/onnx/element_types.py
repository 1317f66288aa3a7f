"""Element types of ONNX: their numbers, names and widths, and codes of few bits as they are stored."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
from onnx import TensorProto

from llmq_kernels.pack import pack

__all__ = ["FLOATS", "STORED_FLOATS", "code_type", "element_bits", "packed_bytes", "packed_codes", "type_name"]

FLOATS: Final[dict[int, np.dtype[Any]]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.DOUBLE: np.dtype("<f8"),
}
"""NumPy dtypes of the floats that weights come in."""

STORED_FLOATS: Final[dict[str, int]] = {
    "BF16": TensorProto.BFLOAT16,
    "F16": TensorProto.FLOAT16,
    "F32": TensorProto.FLOAT,
    "F64": TensorProto.DOUBLE,
}
"""Types of the same floats by their codes in safetensors."""

# By number where older packages lack the names.
_SIGNED: Final = {8: TensorProto.INT8, 4: TensorProto.INT4, 2: 26}
_UNSIGNED: Final = {8: TensorProto.UINT8, 4: TensorProto.UINT4, 2: 25}

_BITS: Final = {
    8: ("UINT8", "INT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
    16: ("UINT16", "INT16", "FLOAT16", "BFLOAT16"),
    32: ("FLOAT", "INT32", "UINT32"),
    64: ("INT64", "UINT64", "DOUBLE", "COMPLEX64"),
    128: ("COMPLEX128",),
    6: ("FLOAT6E2M3", "FLOAT6E3M2"),
    4: ("UINT4", "INT4", "FLOAT4E2M1"),
    2: ("UINT2", "INT2"),
}
_BITS_BY_NAME: Final = {name: bits for bits, names in _BITS.items() for name in names}
_NAMES: Final[dict[int, str]] = {number: name for name, number in TensorProto.DataType.items()}


def type_name(data_type: int) -> str:
    """Name of a type by its number, as in ``float16``."""
    name = _NAMES.get(data_type, str(data_type)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def element_bits(data_type: int) -> int | None:
    """Bits of an element of a type; None for text and for unknown types."""
    return _BITS_BY_NAME.get(_NAMES.get(data_type, ""))


def code_type(bits: int, *, signed: bool) -> int:
    """Type of integers of 2, 4 or 8 bits."""
    return (_SIGNED if signed else _UNSIGNED)[bits]


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of so many elements of so many bits, one after the other."""
    return -(-elements * bits // 8)


def packed_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack all codes of an array one after the other, low bits first, without padding between rows.

    Parameters
    ----------
    codes : uint8 or int8 (...)
        Signed ones are stored in two's complement.
    bits : int
        1 to 8.

    Returns
    -------
    uint8 (1, packed_bytes(codes.size, bits))

    Examples
    --------
    >>> packed_codes(np.array([1, -1, 2], np.int8), 4).tolist()
    [[241, 2]]
    """
    flat = np.ascontiguousarray(codes).view(np.uint8).reshape(1, -1) & np.uint8((1 << bits) - 1)
    return pack(flat, bits)[:, : packed_bytes(flat.size, bits)]
