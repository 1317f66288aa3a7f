"""Ranges from data. To add an observer, write one file and one row of `OBSERVERS`."""

from __future__ import annotations

from typing import Final

from llmq.observers.minmax import MinMax
from llmq.observers.observer import Observer
from llmq.observers.parameters import dequantize_array, quantize_array, scale_and_zero_point

__all__ = ["OBSERVERS", "MinMax", "Observer", "dequantize_array", "quantize_array", "scale_and_zero_point"]

OBSERVERS: Final[dict[str, type[Observer]]] = {"minmax": MinMax}
"""What chooses ranges, by name."""
