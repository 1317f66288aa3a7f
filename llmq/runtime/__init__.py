"""Running checkpoints: a decoder in NumPy and Numba on memory-mapped weights. Neither torch nor a GPU."""

from __future__ import annotations

from llmq.runtime.linear import matmul
from llmq.runtime.load import load, load_mapped
from llmq.runtime.model import Model
from llmq.runtime.sampling import Sampling

__all__ = ["Model", "Sampling", "load", "load_mapped", "matmul"]
