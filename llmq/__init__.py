"""Shrink Hugging Face LLM checkpoints on a CPU and run them there.

    llmq.quantize("path-or-hub-id", "out", bits=4, group_size=64)
    model = llmq.load("out")
    q = llmq.quantize_tensor(weight, bits=4, group_size=64)

Everything is imported on first use, so that `import llmq` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# libgomp reads it when it is loaded; spinning threads starve a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from llmq.errors import LlmqError
    from llmq.methods import quantize_tensor
    from llmq.pipeline import quantize
    from llmq.runtime import load, matmul
    from llmq.spec import QuantizedTensor, QuantScheme, QuantSpec, Recipe
    from llmq.verification import verify

__version__ = "0.1.0"

__all__ = [
    "LlmqError",
    "QuantScheme",
    "QuantSpec",
    "QuantizedTensor",
    "Recipe",
    "__version__",
    "load",
    "matmul",
    "quantize",
    "quantize_tensor",
    "verify",
]

_HOMES = {
    "LlmqError": "llmq.errors",
    "QuantScheme": "llmq.spec",
    "QuantSpec": "llmq.spec",
    "QuantizedTensor": "llmq.spec",
    "Recipe": "llmq.spec",
    "load": "llmq.runtime",
    "matmul": "llmq.runtime",
    "quantize": "llmq.pipeline",
    "quantize_tensor": "llmq.methods",
    "verify": "llmq.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmq' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
