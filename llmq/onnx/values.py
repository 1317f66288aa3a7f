"""Inputs and outputs of a graph, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import helper

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["described"]


def described(value: ValueInfoProto) -> dict[str, Any]:
    """Tell `name`, `dtype` and `shape` of a tensor; a length that varies is a word."""
    kind = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return {"name": value.name, "dtype": helper.tensor_dtype_to_np_dtype(kind.elem_type).name, "shape": shape}
