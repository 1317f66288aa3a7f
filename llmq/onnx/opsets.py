"""Sets of operators: their domains, and the versions from which on they have what quantized weights need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnx import helper

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FOUR_BIT_OPSET", "MICROSOFT", "STANDARD", "TWO_BIT_OPSET", "least_ir_version", "opset_of"]

STANDARD: Final = ("", "ai.onnx")
"""Both names of the domain of the standard operators."""

MICROSOFT: Final = "com.microsoft"
"""Domain of the operators that only ONNX Runtime has."""

FOUR_BIT_OPSET: Final = 21
"""The first version with 4-bit types, and with blocks of `DequantizeLinear`."""

TWO_BIT_OPSET: Final = 25
"""The first version with 2-bit types."""


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that a model imports; 1 where it imports none."""
    return next((found.version for found in model.opset_import if found.domain in STANDARD), 1)


def least_ir_version(opset: int) -> int:
    """Version of the format that has so new operators; 4 at least, from which on weights need not be inputs."""
    versions: int = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    return max(4, versions)
