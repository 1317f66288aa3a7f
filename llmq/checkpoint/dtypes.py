"""The dtypes of safetensors: their codes, sizes and NumPy dtypes."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np

from llmq.errors import InputError, UnsupportedError

__all__ = ["FLOATS", "NUMPY_DTYPES", "bytes_per_element"]

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
"""NumPy dtype by safetensors code."""

FLOATS: Final = ("F16", "BF16", "F32", "F64")
"""Codes of the floats of 16 bits and more: they can be widened, or narrowed, to float32."""

_SUB_BYTE: Final = frozenset({"F4", "F6_E2M3", "F6_E3M2"})


def bytes_per_element(code: str, *, file: str | None = None, tensor: str | None = None) -> int:
    """Return the bytes of one element.

    Raises
    ------
    UnsupportedError
        A dtype narrower than a byte.
    InputError
        Not a dtype of safetensors.
    """
    if code in NUMPY_DTYPES:
        return NUMPY_DTYPES[code].itemsize
    if code in _SUB_BYTE:
        raise UnsupportedError(f"dtype {code} is not supported", file=file, tensor=tensor)
    raise InputError(f"unknown dtype {code[:40]!r}", file=file, tensor=tensor)
