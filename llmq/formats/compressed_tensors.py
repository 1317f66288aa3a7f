"""The format of compressed-tensors, ``pack-quantized``, which is also llmq's own.

A module's weight ``(out, in)`` of `b` bits in groups of `g` is stored as::

    weight_packed      I32 [out, ceil(in * b / 32)]    dense little-endian bit stream of unsigned codes, row by row
    weight_scale       F16, BF16 or F32 [out, in / g]  one column when the group is the whole row
    weight_zero_point  I32 [ceil(out * b / 32), in / g]    asymmetric only: codes, packed down the columns
    weight_shape       I64 [2]

A weight of one bit on the sign grid ``{-s, +s}`` is stored with 2-bit codes 1 and 3 and half the scale, and reads back
as a 2-bit weight of the same values, but for float16 scales below 2**-14, whose halves are rounded, and never to zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.layout import OutputTensor
from llmq.errors import InputError, UnsupportedError
from llmq.formats.bitstream import pack_columns, spread_sign_codes, unpack_columns
from llmq.formats.detect import already_quantized
from llmq.formats.schemes import Schemes, quantization_config, read_schemes, stored_bits
from llmq.spec import FLOAT_DTYPES, QuantizedTensor, QuantSpec, ScaleDtype

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SCALE_CODES",
    "SUFFIXES",
    "Schemes",
    "already_quantized",
    "decode",
    "encode",
    "entries",
    "quantization_config",
    "read_schemes",
]

SUFFIXES: Final = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
"""Of a module's tensors; the last is only ever read."""

SCALE_CODES: Final[dict[ScaleDtype, str]] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""Code of safetensors by dtype of scales."""

_SCALE_NAMES: Final[dict[np.dtype[Any], ScaleDtype]] = {FLOAT_DTYPES[name]: name for name in SCALE_CODES}


def entries(module: str, spec: QuantSpec, shape: tuple[int, int]) -> tuple[OutputTensor, ...]:
    """Plan the tensors of one quantized weight.

    Parameters
    ----------
    module : str
        Name of the module, without ``.weight``.
    spec : QuantSpec
        Resolved.
    shape : (int, int)
        ``(out_features, in_features)``.
    """
    rows, columns = shape
    bits = stored_bits(spec)
    groups = columns // spec.group_size
    scale = OutputTensor(f"{module}.weight_scale", _scale_code(spec), (rows, groups))
    found = [OutputTensor(f"{module}.weight_packed", "I32", (rows, -(-columns * bits // 32))), scale]
    if not spec.symmetric:
        found.append(OutputTensor(f"{module}.weight_zero_point", "I32", (-(-rows * bits // 32), groups)))
    found.append(OutputTensor(f"{module}.weight_shape", "I64", (2,)))
    return tuple(found)


def _scale_code(spec: QuantSpec) -> str:
    assert spec.scale_dtype is not None, "the spec is resolved"
    return SCALE_CODES[spec.scale_dtype]


def encode(q: QuantizedTensor) -> dict[str, np.ndarray]:
    """Turn a block of rows into arrays by suffix; the arrays of blocks follow each other in the file.

    Parameters
    ----------
    q : QuantizedTensor
        Of a multiple of 32 rows, unless it is the last block: zero points are packed across rows.

    Returns
    -------
    dict of str to array
        Everything but ``weight_shape``.
    """
    packed, scale = q.packed, q.scale
    if q.spec.bits == 1 and q.spec.symmetric:
        packed = spread_sign_codes(packed, q.shape[1])
        scale = _halved(scale)
    arrays = {"weight_packed": np.ascontiguousarray(packed).view("<i4"), "weight_scale": scale}
    if q.zero_point is not None:
        arrays["weight_zero_point"] = pack_columns(q.zero_point, q.spec.bits)
    return arrays


def _halved(scale: np.ndarray) -> np.ndarray:
    """Halve scales, none of them to zero: the least of float16 stays what it is."""
    half = scale * scale.dtype.type(0.5)
    return np.asarray(np.where(half == 0, scale, half), scale.dtype)


def decode(arrays: Mapping[str, np.ndarray], scheme: QuantSpec, module: str) -> QuantizedTensor:
    """Turn arrays by suffix into a quantized weight; codes and scales are not copied.

    Parameters
    ----------
    arrays : mapping of str to array
        The module's tensors by suffix.
    scheme : QuantSpec
        From `Schemes.scheme`.
    module : str
        Named in errors.

    Raises
    ------
    InputError
        Tensors missing, or of a dtype or shape that does not fit the scheme.
    UnsupportedError
        Activation order, the padded packing of older versions, or groups that do not divide a row.
    """
    rows, columns = _shape(arrays, module)
    packed = _codes(arrays, scheme.bits, (rows, columns), module)
    scale = _scale(arrays, module)
    group_size = columns if scheme.group_size == -1 else scheme.group_size
    if columns % group_size:
        raise UnsupportedError(f"groups of {group_size} do not divide rows of {columns}", tensor=module)
    groups = columns // group_size
    _expect(scale, (rows, groups), "weight_scale", module)
    _check_order(arrays, group_size, module)
    spec = replace(scheme, group_size=group_size, scale_dtype=_SCALE_NAMES[scale.dtype])
    zero_point = _zero_point(arrays, spec, (rows, groups), module)
    return QuantizedTensor(spec, (rows, columns), packed, scale, zero_point)


def _get(arrays: Mapping[str, np.ndarray], suffix: str, module: str) -> np.ndarray:
    if suffix not in arrays:
        raise InputError(f"{suffix} is missing", tensor=module)
    return np.ascontiguousarray(arrays[suffix])


def _expect(array: np.ndarray, shape: tuple[int, ...], suffix: str, module: str) -> None:
    if array.shape != shape:
        expected, found = list(shape), list(array.shape)
        raise InputError("shape does not fit", tensor=f"{module}.{suffix}", expected=expected, found=found)


def _shape(arrays: Mapping[str, np.ndarray], module: str) -> tuple[int, int]:
    shape = _get(arrays, "weight_shape", module)
    if shape.dtype.kind not in "iu" or shape.shape != (2,) or min(shape.tolist()) < 1:
        raise InputError("must be two positive integers", tensor=f"{module}.weight_shape", found=str(shape)[:80])
    rows, columns = shape.tolist()
    return rows, columns


def _codes(arrays: Mapping[str, np.ndarray], bits: int, shape: tuple[int, int], module: str) -> np.ndarray:
    packed = _get(arrays, "weight_packed", module)
    tensor = f"{module}.weight_packed"
    if packed.dtype != np.int32:
        raise InputError("wrong dtype", tensor=tensor, expected="int32", found=packed.dtype)
    rows, columns = shape
    words, padded_words = -(-columns * bits // 32), -(-columns // (32 // bits))
    if packed.shape == (rows, padded_words) and padded_words != words:
        raise UnsupportedError(
            f"{bits}-bit codes in the padded packing of compressed-tensors before 0.17",
            tensor=tensor,
            hint="quantize the original checkpoint instead",
        )
    _expect(packed, (rows, words), "weight_packed", module)
    return packed.view(np.uint8)


def _scale(arrays: Mapping[str, np.ndarray], module: str) -> np.ndarray:
    scale = _get(arrays, "weight_scale", module)
    if scale.dtype not in _SCALE_NAMES:
        raise InputError(
            "wrong dtype", tensor=f"{module}.weight_scale", expected="/".join(FLOAT_DTYPES), found=scale.dtype
        )
    return scale


def _check_order(arrays: Mapping[str, np.ndarray], group_size: int, module: str) -> None:
    order = arrays.get("weight_g_idx")
    if order is None or np.all(order == -1) or np.array_equal(order, np.arange(order.size) // group_size):
        return
    raise UnsupportedError(
        "columns in activation order", tensor=f"{module}.weight_g_idx", hint="quantize the original checkpoint instead"
    )


def _zero_point(
    arrays: Mapping[str, np.ndarray], spec: QuantSpec, shape: tuple[int, int], module: str
) -> np.ndarray | None:
    """Zero points as codes, uint8 `shape`; older versions stored them as signed bytes."""
    stored = arrays.get("weight_zero_point")
    if spec.symmetric:
        if stored is not None and np.any(stored):
            raise InputError("zero points in a symmetric scheme", tensor=f"{module}.weight_zero_point")
        return None
    stored = _get(arrays, "weight_zero_point", module)
    if stored.dtype == np.int8:
        _expect(stored, shape, "weight_zero_point", module)
        codes = stored.astype(np.int16) + (1 << spec.bits >> 1)
        if codes.min() < 0 or codes.max() >= 1 << spec.bits:
            raise InputError("zero points out of range", tensor=f"{module}.weight_zero_point")
        return codes.astype(np.uint8)
    if stored.dtype != np.int32:
        raise InputError("wrong dtype", tensor=f"{module}.weight_zero_point", expected="int32", found=stored.dtype)
    rows, groups = shape
    _expect(stored, (-(-rows * spec.bits // 32), groups), "weight_zero_point", module)
    return unpack_columns(stored, spec.bits, rows)
