"""ONNX out and in: packed decoders and integer layers as graphs, and float graphs with quantized weights.

Needs the packages of the `onnx` extra; onnxruntime is what runs the result, and is not needed to write it.
"""

from llmq.onnx.quantize import quantize_model
from llmq.onnx.quantize_report import OnnxReport

__all__ = ["OnnxReport", "quantize_model"]
