"""Stored floats to float32."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq_kernels.floats import widen

__all__ = ["to_float32"]

_HALF_KINDS: Final = {"F16": "float16", "BF16": "bfloat16"}


def to_float32(raw: np.ndarray, dtype: str, out: np.ndarray) -> np.ndarray:
    """Convert the bytes of a tensor to float32.

    Parameters
    ----------
    raw : uint8 (n * itemsize,)
    dtype : str
        Code of safetensors: F16, BF16, F32 or F64. What overflows float32 becomes infinite.
    out : float32 (...), n elements
        C-contiguous; written and returned.
    """
    if dtype in _HALF_KINDS:
        return widen(raw.view("<u2").reshape(out.shape), _HALF_KINDS[dtype], out=out)
    with np.errstate(over="ignore"):
        np.copyto(out, raw.view(NUMPY_DTYPES[dtype]).reshape(out.shape), casting="same_kind")
    return out
