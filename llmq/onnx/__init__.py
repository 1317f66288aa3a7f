"""ONNX out and in: packed decoders and integer layers as graphs, and float graphs with quantized weights.

Needs the packages of the `onnx` extra; onnxruntime is what runs the result, and is not needed to write it.
"""

from llmq.onnx.integer import export_integer, export_saved, integer_model

__all__ = ["export_integer", "export_saved", "integer_model"]
