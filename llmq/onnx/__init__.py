"""ONNX out and in: packed decoders and integer layers as graphs, and float graphs with quantized weights.

    export_decoder("out", "onnx/model.onnx")      # a packed checkpoint as a graph over the bytes of its own files
    export_integer(network, "network.onnx")       # a network of llmq.integer, as QDQ or operators on integers
    quantize_model("float.onnx", "small.onnx")    # a float model from anywhere, with packed weights

Needs the packages of the `onnx` extra; onnxruntime is what runs the result, and is not needed to write it. Everything
is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmq.errors import UsageError

if TYPE_CHECKING:
    from llmq.onnx.decoder_check import Agreement, agreement
    from llmq.onnx.decoder_export import ExportedDecoder, export_decoder
    from llmq.onnx.integer_export import ExportedNetwork, export_integer, export_saved, integer_model
    from llmq.onnx.quantize import quantize_model
    from llmq.onnx.quantize_report import OnnxReport

__all__ = [
    "Agreement",
    "ExportedDecoder",
    "ExportedNetwork",
    "OnnxReport",
    "agreement",
    "export_decoder",
    "export_integer",
    "export_saved",
    "integer_model",
    "quantize_model",
]

_HOMES = {
    "Agreement": "llmq.onnx.decoder_check",
    "ExportedDecoder": "llmq.onnx.decoder_export",
    "ExportedNetwork": "llmq.onnx.integer_export",
    "OnnxReport": "llmq.onnx.quantize_report",
    "agreement": "llmq.onnx.decoder_check",
    "export_decoder": "llmq.onnx.decoder_export",
    "export_integer": "llmq.onnx.integer_export",
    "export_saved": "llmq.onnx.integer_export",
    "integer_model": "llmq.onnx.integer_export",
    "quantize_model": "llmq.onnx.quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmq.onnx' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package != "onnx":
            raise
        raise UsageError(f"needs the package {package}", hint='pip install "numba-llmq[onnx]"') from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
