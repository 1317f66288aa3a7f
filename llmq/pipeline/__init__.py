"""Run a plan."""

from llmq.pipeline.facade import quantize
from llmq.pipeline.given import write_given
from llmq.pipeline.report import QuantizeReport

__all__ = ["QuantizeReport", "quantize", "write_given"]
