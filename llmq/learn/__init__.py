"""Quantization with gradients: fake quantization whose steps are learned, for training and for tuning blocks.

Needs torch (the `hf` extra).
"""

from llmq.learn.fake import FakeQuantize

__all__ = ["FakeQuantize"]
