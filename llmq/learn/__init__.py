"""Quantization with gradients: fake quantization whose steps are learned, for training and for tuning blocks.

Needs torch (the `hf` extra).
"""

from llmq.learn.fake import SCALE_DTYPES, FakeQuantize
from llmq.learn.found import found_steps

__all__ = ["SCALE_DTYPES", "FakeQuantize", "found_steps"]
